"""The embedded engine with scale compression: answers together are answers alone."""

import threading

import pytest

from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.serve.engine import Delta, Done, EmbeddedEngine, Failed

from .conftest import conversation, generated


@pytest.fixture(scope="module")
def monkey():
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {
        "views": {"part": "msac", "options": {"max_detailed": 6, "max_adaptive": 4}},
        "connector": ["pixel-shuffle"],
        "mechanisms": [{"part": "scm", "options": {"ratio": 0.25}}],
    }
    model, processor = build(parse_recipe(values, "monkey"))
    for parameter in model.model.language_model.parameters():
        parameter.data *= 4  # large enough that what is seen changes what is said
    return model.eval(), processor


def asked_together(engine, questions):
    """Tokens of every answer, all questions waiting at once."""
    answers = [[] for _ in questions]
    done = [threading.Event() for _ in questions]

    def listener(number):
        def deliver(event):
            answers[number].append(event)
            if isinstance(event, (Done, Failed)):
                done[number].set()

        return deliver

    for number, question in enumerate(questions):
        engine.submit(question, listener(number))
    assert all(event.wait(60) for event in done)
    assert not [e for events in answers for e in events if isinstance(e, Failed)]
    return [
        [token for event in events if isinstance(event, Delta) for token in event.tokens]
        for events in answers
    ]


def test_answers_of_a_compressed_prompt(monkey, shown):
    model, processor = monkey
    questions = [
        conversation("What?", shown(60, 90), max_tokens=6, ignore_eos=True),
        conversation("How many?", max_tokens=8, ignore_eos=True),
        conversation("And these?", shown(30, 90, 1), shown(90, 30, 2), max_tokens=5),
        conversation("What?", shown(60, 90, 3), max_tokens=6, ignore_eos=True),
    ]
    free = {"eos_token_id": None, "pad_token_id": 0}
    right = [
        generated(
            model, processor, q, q.sampling.max_tokens, **(free if q.sampling.ignore_eos else {})
        )
        for q in questions
    ]
    assert right[0] != right[3]  # the picture is seen
    engine = EmbeddedEngine("monkey", model, processor)
    try:
        said = engine.describe()["capabilities"]
        assert said["batching"] == "row-by-row"
        assert "scm" in said["batching_reason"]
        assert asked_together(engine, questions) == right
        assert asked_together(engine, questions[::-1]) == right[::-1]
    finally:
        engine.close()
