"""The recipes: views and tokens of the full size, costs counted without weights."""

from __future__ import annotations

import pytest

from vistoken.models.cost import empty_model, measure_cost
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.recipe import load_recipe


@pytest.mark.parametrize(("name", "views"), [("inf-llava-8b", 19), ("inf-llava-nano", 18)])
def test_tokens_of_a_recipe(name, views):
    recipe = load_recipe(name)
    processor = VistokenImageProcessor(recipe.pipeline(recipe.model_config_for()).to_dict())
    assert len(processor.view_table(900, 1300)) == views
    assert len(processor.token_map(900, 1300)) == 24 * 24


@pytest.mark.slow
def test_costs_of_the_release():
    recipe = load_recipe("inf-llava-8b")
    config = recipe.model_config_for()
    cost = measure_cost(empty_model(config), recipe.pipeline(config))
    assert cost.parameters["connector.inf-dem"] == 4_400_256
    assert cost.views == 19
    assert cost.visual_tokens == 576
    base = load_recipe("llava-1.5-7b")
    config = base.model_config_for()
    one = measure_cost(empty_model(config), base.pipeline(config))
    assert sum(cost.encode_flops.values()) == 19 * sum(one.encode_flops.values())
