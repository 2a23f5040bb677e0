"""The embedded engine with scale compression: answers together are answers alone."""

import pytest

from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.serve.engine import EmbeddedEngine

from .conftest import asked_together, conversation, generated


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
