"""Every recipe of the house with weights of milliseconds: its parts, tiny encoders and decoder."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from PIL import Image

from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe, recipe_names

LAYERS = 2


def tiny_values(name):
    """A recipe's fields, all sizes small; views, connector, layout and mechanisms stay."""
    own = load_recipe(name).model_dump(exclude_none=True)
    if name == "pico":
        return own
    pico = load_recipe("pico").model_dump(exclude_none=True)
    (tower,) = pico["towers"]
    tower["config"] |= {"image_size": 192}  # 24 x 24 cells, as many as the parts are made for
    towers = [{**tower, "name": t["name"], "size": [192, 192]} for t in own["towers"]]
    language = {**pico["language_model"]}
    language["config"] |= {"initializer_range": 0.3, "max_position_embeddings": 8192}
    kept = {k: own[k] for k in ("views", "connector", "layout", "mechanisms")}
    for mechanism in kept["mechanisms"]:
        if not isinstance(mechanism, str) and "layer_cut" in mechanism["options"]:
            mechanism["options"]["layer_cut"] = 1
    return {
        "name": name, "template": pico["template"], "towers": towers, "language_model": language,
        **kept,
    }  # fmt: skip


def distinct_recipes():
    """Names of recipes, one for each pipeline: sizes of weights make no difference here."""
    found = {}
    for name in recipe_names():
        found.setdefault(json.dumps({**tiny_values(name), "name": ""}), name)
    return sorted(found.values())


@cache
def built(name):
    return build(parse_recipe(tiny_values(name), name))


@pytest.fixture(params=distinct_recipes())
def system(request):
    """Name, model and processor of every pipeline; not to be modified."""
    return request.param, *built(request.param)


@pytest.fixture
def scene():
    """A picture that is no square, different in every region."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 255, (7, 10, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((300, 200), Image.Resampling.BILINEAR)
