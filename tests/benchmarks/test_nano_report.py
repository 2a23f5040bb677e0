"""The report on nano: what counts as a loop or a denial, and the tables of the card."""

import json

import nano_answers
import nano_report
import nano_tables
import pytest
from nano_language import goes_round, held_out_text

from vistoken.eval.records import Record
from vistoken.eval.summary import summarise


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("a cat and a dog and a bird", False),
        ("no no no no no", False),
        ("no no no no no no", True),
        ("It is a cat. It is a cat. It is a cat.", True),
        ("It is a cat. It is a dog. It is a cat.", False),
        ("well then the cat sat the cat sat the cat sat", True),
        ("", False),
    ],
)
def test_what_goes_round(text, loops):
    assert goes_round(text) is loops


def test_held_out_text_is_prose():
    text = held_out_text()
    assert len(text.split()) > 10_000
    assert "```" not in text


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ("What is this? Answer in one word.", "What is this?"),
        ("Do you see a cat? Yes or no?", "Do you see a cat?"),
        ("Name the object. Use one to three words.", "Name the object."),
        ("How many are there?", "How many are there?"),
        ("Answer me?", "Answer me?"),
    ],
)
def test_a_question_without_its_request(asked, left):
    assert nano_answers.bare(asked) == left


def said(kind, answer, picture="a"):
    return Record("val", "1", kind, picture, "x", answer, False, False, False, None)


def test_denials_are_known_by_how_they_begin():
    found = nano_answers.absent(
        [
            said("absent", "There is no cat in the"),
            said("absent", "There is a"),
            said("absent", "The", "b"),
            said("where", "There", "b"),
            said("name1", "There is no"),
        ]
    )
    assert found["absent"]["n"] == 3
    assert found["absent"]["denied"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["there"]["denied"]["value"] == 1


def test_counts_of_pictures():
    assert nano_report.pictures(["val=7"])["val"] == 7
    assert nano_report.pictures([]) == nano_report.PICTURES
    with pytest.raises(SystemExit, match="SPLIT=N"):
        nano_report.pictures(["value=7"])


def test_a_part_is_made_once(tmp_path):
    timings = {}
    made = [nano_report.kept(tmp_path / "p.json", lambda: {"a": 1}, timings) for _ in range(2)]
    assert made == [{"a": 1}] * 2
    assert nano_report.kept(tmp_path / "p.json", pytest.fail, timings) == {"a": 1}
    assert set(timings) == {"p"}


def result():
    rows = [
        Record("val", str(n), "count", "ab"[n % 2], "x", "x", True, n < 3, False, grey)
        for n, grey in enumerate((False, None, True, None))
    ]
    share = {"value": 0.5, "low": 0.25, "high": 0.75}
    free = {"n": 20, "longest": 64, "at_limit": 5, "loops": 1}
    return {
        "accuracy": {"val": summarise(rows)},
        "absent": {"val": {"absent": {"n": 8, "denied": share}}},
        "one_word": {"one word, other wording": {"n": 4, "one_word": 0.75, "sentence": 0.0}},
        "chat": {"nano": free, "base": free},
        "picture_chat": free,
        "language": {
            "tokens": 20480,
            "text": "prose",
            "perplexity": {"nano": 21.0, "base": 20.0},
            "ratio": {"value": 1.05, "low": 1.04, "high": 1.06},
        },
    }


def test_tables_of_a_card(tmp_path):
    text = nano_tables.write_tables(tmp_path / "README.md", json.loads(json.dumps(result())))
    assert "| count | 4 | 75.0 [50, 100] | 50.0 [50, 50] (n 2) | 0.0 | +50.0 [+50, +50] |" in text
    assert "says so (`val`) | 8 | 50 [25, 75] |" in text
    assert "| asked for one word, other wording, gives it | 4 | 75 |" in text
    assert "does not end within 64 tokens (nano, no picture) | 20 | 25 |" in text
    assert "ratio 1.050 [1.040, 1.060]" in text
    assert text in (tmp_path / "README.md").read_text("utf-8")
