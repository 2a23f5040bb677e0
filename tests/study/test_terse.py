"""Terse questions: what is asked, a direction and names, every one a token of the reduced model."""

from __future__ import annotations

import pytest

from vistoken.core.errors import DataError
from vistoken.data.scenes.backgrounds import COLOURS
from vistoken.data.scenes.names import icon_names
from vistoken.models.build import load_tokenizer
from vistoken.study.terse import ASKED, DIRECTIONS, named, one_word, terse_row, terse_scene


def row(kind, text, answer, **facts):
    content = [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": "1", "kind": kind, "answer": answer, "messages": messages, **facts}


@pytest.mark.parametrize(
    ("kind", "text", "facts", "said"),
    [
        ("relation", "Of the bus and the gift, which is further left?",
         {"direction": "left"}, "relation left bus gift"),
        ("presence", "Is there a roller coaster in the picture?", {}, "presence roller-coaster"),
        ("count-of", "How many tropical fish are there?", {}, "count-of tropical-fish"),
        ("count-of", "Count the mailboxes in the picture.", {}, "count-of mailbox"),
        ("colour", "What color is the background? Answer with one word.", {}, "colour"),
    ],
)  # fmt: skip
def test_a_question_in_terse_words(kind, text, facts, said):
    made = terse_row(row(kind, text, "ice cube", **facts))
    user, reply = made["messages"]
    assert user["content"] == [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": said}]
    assert reply["content"][0]["text"] == "ice-cube"
    assert made["id"] == "1"


def test_rows_that_have_no_terse_form():
    assert terse_row(row("presence", "Is there a thing?", "no")) is None
    with pytest.raises(DataError, match="kind 'caption-1' has no terse form"):
        terse_row(row("caption-1", "Describe it.", "a cat"))


def test_the_longest_name_is_meant():
    assert named("Which is higher, the Polar bear or the bus stop?") == ["polar bear", "bus stop"]
    assert named("Where are the knives and catamarans?") == ["knife"]


def test_annotations_use_the_same_words():
    scene = {"image": "a.jpg", "objects": [{"name": "ice cube", "box": [0, 0, 1, 1]}]}
    assert terse_scene(scene)["objects"] == [{"name": "ice-cube", "box": [0, 0, 1, 1]}]


def test_every_word_is_a_token_of_its_own():
    tokenizer = load_tokenizer("assets:words-tokenizer")
    words = [one_word(name.word) for name in icon_names()]
    words += [*ASKED, *DIRECTIONS, *COLOURS, "yes", "no", "zero", "eight"]
    ids = [tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in words]
    assert all(len(found) == 1 and found[0] != tokenizer.unk_token_id for found in ids)
    assert tokenizer.decode([found[0] for found in ids[:3]]) == " ".join(words[:3])
