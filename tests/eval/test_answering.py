"""Reading the right answer in one pass gives what letting the model write gives."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vistoken.data.messages import read_messages
from vistoken.eval.answering import Answerer, could_become
from vistoken.eval.prompts import PromptMaker
from vistoken.eval.scoring import exact_match
from vistoken.eval.tasks import Question
from vistoken.train.encoders import PixelEncoder
from vistoken.train.examples import Example

QUESTIONS = ["What is this?", "How many objects are in the picture?", "Is there a cat?"]
LONGEST = 6


@pytest.fixture(scope="module")
def talkative():
    """A pico that writes short words and ends its answers, differently for each question."""
    from vistoken.models.build import build
    from vistoken.models.recipe import load_recipe

    model, processor = build(load_recipe("pico"))
    model = copy.deepcopy(model)
    letters = processor.tokenizer("abc.ABCé", add_special_tokens=False)["input_ids"]
    ends = [processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    kept = sorted({*letters, *ends})
    others = [token for token in range(model.lm_head.out_features) if token not in kept]
    with torch.no_grad():
        model.lm_head.weight *= 40  # clear winners: rounding must not decide
    model.generation_config.suppress_tokens = others
    model.generation_config.eos_token_id = ends
    return model, processor


def question(image, text, answer, before=()):
    user = [{"type": "text", "text": text}]
    if image is not None and not before:
        user.insert(0, {"type": "image", "path": image.name})
    messages = [
        *before,
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    read = read_messages({"id": "x", "messages": messages}, "test")
    images = () if image is None else (image,)
    return Question("test", "x", "name", Example("test", read, images, "name"), answer)


def ask(model, processor, method, questions, longest=LONGEST):
    make = PromptMaker(model, processor, PixelEncoder(processor))
    answers = [one.answer for one in questions]
    return Answerer(model, processor, method, longest)(make(questions), answers)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 56, 3), np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def variants(text):
    """Answers around what a model says: the same, the same once normalised, and others."""
    yield from (text, text.upper(), f"{text}.", f"  {text} ", f"{text} .", text.capitalize())
    yield from (text[:-1], text + "a", text[1:], "no", text + ". b")


def test_both_methods_agree_on_every_answer(talkative, images):
    model, processor = talkative
    seen = {True: 0, False: 0}
    said = set()
    for image in images:
        spoken = ask(model, processor, "generate", [question(image, q, "x") for q in QUESTIONS])
        said |= {answer.text for answer in spoken}
        asked = [
            question(image, q, variant)
            for q, answer in zip(QUESTIONS, spoken, strict=True)
            for variant in variants(answer.text)
            if variant.strip()
        ]
        forced = ask(model, processor, "forced", asked)
        written = ask(model, processor, "generate", asked)
        for one, fast, slow in zip(asked, forced, written, strict=True):
            assert fast.right == slow.right == exact_match(slow.text, one.answer), one.answer
            if fast.complete:
                assert fast.text == slow.text
            else:
                assert slow.text.startswith(fast.text)
            seen[fast.right] += 1
    assert len(said) > 1, "questions and pictures must matter to the answer"
    assert min(seen.values()) > 10


def test_answers_that_end_are_decided_without_writing(talkative, images, monkeypatch):
    model, processor = talkative
    everything = [(image, text) for image in images for text in QUESTIONS]
    spoken = [ask(model, processor, "generate", [question(*one, "x")])[0] for one in everything]
    plain = next(n for n, answer in enumerate(spoken) if answer.text[:1] in tuple("abcABC."))
    monkeypatch.setattr(type(model), "generate", _never)
    wrong = ask(model, processor, "forced", [question(*everything[plain], "zebra")])[0]
    assert not wrong.right
    assert not wrong.complete


def test_answers_longer_than_allowed_are_cut_alike(talkative, images):
    model, processor = talkative
    for image in images:
        spoken = ask(model, processor, "generate", [question(image, q, "x") for q in QUESTIONS])
        asked = [question(image, q, a.text) for q, a in zip(QUESTIONS, spoken, strict=True)]
        for longest in (1, 2, LONGEST - 1):
            forced = ask(model, processor, "forced", asked, longest)
            written = ask(model, processor, "generate", asked, longest)
            assert [(a.right, a.text) for a in forced] == [(a.right, a.text) for a in written]


def _never(*_, **__):
    raise AssertionError("the answer is known already")


def test_only_the_last_answer_of_a_conversation_counts(talkative, images):
    model, processor = talkative
    before = [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": images[0].name},
                {"type": "text", "text": QUESTIONS[0]},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a wrong answer"}]},
    ]
    spoken = ask(model, processor, "generate", [question(images[0], QUESTIONS[1], "x", before)])
    right = question(images[0], QUESTIONS[1], spoken[0].text, before)
    other = question(images[0], QUESTIONS[1], "zebra", before)
    plain = question(images[0], QUESTIONS[1], "zebra")
    forced = ask(model, processor, "forced", [right, plain, other])
    assert [answer.right for answer in forced] == [True, False, False]


def test_questions_without_a_picture(talkative):
    model, processor = talkative
    spoken = ask(model, processor, "generate", [question(None, QUESTIONS[0], "x")])[0]
    forced = ask(model, processor, "forced", [question(None, QUESTIONS[0], spoken.text)])[0]
    assert forced.right


@given(st.text("aB. é\n", max_size=6), st.text("aB. é\n", max_size=4), st.text("aB. ", max_size=6))
def test_nothing_that_can_still_be_right_is_called_wrong(beginning, rest, answer):
    if exact_match(beginning + rest, answer):
        assert could_become(beginning, answer)


def test_what_cannot_become_right():
    assert not could_become("do", "cat")
    assert not could_become("cats", "cat")
    assert could_become("Ca", "cat")
    assert could_become("cat .", "Cat")
