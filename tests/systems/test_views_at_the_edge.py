"""Pictures at the edge of what can be read, through whole models of the three systems of views."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vistoken.core.errors import DataError, UsageError
from vistoken.core.tables import TOKEN
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe

SYSTEMS = {
    "msac": {"views": "msac", "connector": ["pixel-shuffle"], "mechanisms": ["scm"]},
    "uhd-slices": {
        "views": "uhd-slices",
        "connector": [{"part": "uhd-resampler", "options": {"grid": 3}}],
        "layout": "uhd-schema",
    },
    "inf-dcm": {
        "views": {"part": "inf-dcm", "options": {"n": 2}},
        "connector": [{"part": "inf-dem", "options": {"pool": "none", "fuse_base": "none"}}, "mlp"],
    },
}
WIDE_TOWER = {
    "size": [16, 32],
    "config": {
        "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 16, "patch_size": 8,
    },
}  # fmt: skip
WAYS_OUT = {
    "msac": "give pixel-shuffle a larger factor",
    "uhd-slices": "lower max_slices",
    "inf-dcm": "set another pool than none in inf-dem",
}


def make(system, positions=4096, **tower):
    values = load_recipe("pico").model_dump(exclude_none=True) | SYSTEMS[system]
    values["towers"] = [{**values["towers"][0], **tower}]
    values["language_model"]["config"]["max_position_embeddings"] = positions
    model, processor = build(parse_recipe(values, system))
    return model.eval(), processor


@torch.no_grad()
def check(model, processor, size):
    """The picture becomes the tokens that were predicted from its size, all of them finite."""
    inputs = processor.image_processor([Image.new("RGB", size[::-1], (200, 90, 10))])
    features = model.get_image_features(**inputs)
    (rows,), (found,) = features.pooler_output, features.token_map
    assert torch.equal(TOKEN.set(found, media=-1), processor.image_processor.token_map(*size))
    assert len(rows) == len(found) > 0
    assert rows.isfinite().all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_dots_needles_and_huge_pictures(system):
    model, processor = make(system)
    check(model, processor, (2400, 3600))
    for size in ((1, 1), (20_000, 10), (10, 20_000)):
        if system == "uhd-slices":
            said = "1x1 pixels shows nothing" if size == (1, 1) else "max_aspect 100 of uhd-slices"
            with pytest.raises(DataError, match=said):
                processor(images=[Image.new("RGB", size[::-1])], text=["<image> what"])
        else:
            check(model, processor, size)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_tower_that_is_not_square(system):
    model, processor = make(system, **WIDE_TOWER)
    assert processor.image_processor.spec.towers[0].size == (16, 32)
    for size in ((60, 50), (20, 90)):
        check(model, processor, size)


@pytest.mark.parametrize("system", SYSTEMS)
def test_more_tokens_than_the_context(system):
    """The sentence names the tokens, the context and the options that give fewer."""
    _, ample = make(system)
    size = (96, 64)
    count = len(ample.image_processor.token_map(*size))
    model, processor = make(system, positions=count - 1)
    picture = Image.new("RGB", size[::-1])
    with pytest.raises(UsageError) as refused:
        model(**processor(images=[picture], text=["<image> what"], return_tensors="pt"))
    said = str(refused.value)
    assert f"{count} visual tokens" in said
    assert f"{count - 1} positions" in said
    assert "take a language model of more positions" in said
    assert WAYS_OUT[system] in said
