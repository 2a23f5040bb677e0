"""The recipes: views and tokens of the full size, and what the connector costs."""

from __future__ import annotations

import pytest
import torch

from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.recipe import load_recipe

SIZE = (600, 800)


@pytest.mark.parametrize(
    ("name", "views", "tiles", "tokens"),
    [("mini-monkey-2b", 19, 19, 256), ("mini-monkey-nano", 22, 11, 144)],
)
def test_tokens_of_a_recipe(name, views, tiles, tokens):
    recipe = load_recipe(name)
    processor = VistokenImageProcessor(recipe.pipeline(recipe.model_config_for()).to_dict())
    assert len(processor.view_table(*SIZE)) == views  # nano has two towers
    assert len(processor.token_map(*SIZE)) == tiles * tokens


def test_parameters_of_the_release():
    config = load_recipe("mini-monkey-2b").model_config_for()
    with torch.device("meta"):
        model = VistokenForConditionalGeneration(config)
    projector = model.model.multi_modal_projector
    assert sum(p.numel() for p in projector.parameters()) == (
        2 * 4096 + 4096 * 2048 + 2048 + 2048 * 2048 + 2048
    )
    assert sum(p.numel() for p in model.model.vision_tower.parameters()) == pytest.approx(
        304e6, rel=0.01
    )
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(2.2e9, rel=0.01)
