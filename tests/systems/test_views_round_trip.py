"""Systems of many views, saved and loaded: the same views, the same map, the same answer."""

from __future__ import annotations

import pytest
import torch

import vistoken
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe

SYSTEMS = {
    "msac": {
        "views": {"part": "msac", "options": {"max_detailed": 6, "max_adaptive": 4}},
        "connector": ["pixel-shuffle"],
        "mechanisms": [{"part": "scm", "options": {"ratio": 0.25}}],
    },
    "uhd-slices": {
        "views": {"part": "uhd-slices", "options": {"max_slices": 4}},
        "connector": [{"part": "uhd-resampler", "options": {"grid": 3}}],
        "layout": "uhd-schema",
    },
    "inf-dcm": {
        "views": {"part": "inf-dcm", "options": {"n": 2}},
        "connector": ["inf-dem", "mlp"],
    },
}
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


@pytest.mark.parametrize("system", SYSTEMS)
@torch.no_grad()
def test_a_loaded_model_sees_and_says_the_same(system, tmp_path, picture):
    values = load_recipe("pico").model_dump(exclude_none=True) | SYSTEMS[system]
    model, processor = build(parse_recipe(values, system))
    for parameter in model.model.language_model.parameters():
        parameter.data *= 4  # large enough that what is seen changes what is said
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = vistoken.load(tmp_path, device="cpu", dtype="float32")
    model.eval()
    images = [picture(60, 90), picture(90, 40, 1)]
    text = ["<image> and <image>: what is it?"]
    inputs, others = (
        p(images=[images], text=text, return_tensors="pt") for p in (processor, processor_again)
    )
    assert torch.equal(inputs["view_table"], others["view_table"])
    for image in images:
        size = (image.height, image.width)
        maps = [p.image_processor.token_map(*size) for p in (processor, processor_again)]
        assert torch.equal(*maps)
        assert len(maps[0]) > 0
    before, after = model(**inputs), again(**others)
    assert torch.equal(before.token_map, after.token_map)
    assert torch.equal(before.logits, after.logits)
    if system == "msac":
        names = [mechanism.name for mechanism in again.model.stack]
        assert names == ["scm"]
        assert torch.equal(before.rows, after.rows)
        assert after.logits.shape[1] < inputs["input_ids"].shape[1]  # a quarter is kept
    answers = [m.generate(**i, **GREEDY).tolist() for m, i in ((model, inputs), (again, others))]
    assert answers[0] == answers[1]
