"""Sizes and FLOPs of LLaVA-UHD at full size, counted on the meta device as the paper counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from vistoken.core.parts import StageContext
from vistoken.models.build import meta_model
from vistoken.models.configuration import config_from_dict
from vistoken.models.cost import measure_cost, part_parameters
from vistoken.models.recipe import load_recipe
from vistoken.systems.llava_uhd.config import UhdResamplerConfig
from vistoken.systems.llava_uhd.resampler import UhdResampler

VIEWS = 7


def flops(function):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def tower_flops(layers):
    """One 336x336 view through the first ``layers`` layers of CLIP-L."""
    values = load_recipe("llava-uhd-13b").towers[0].config | {"num_hidden_layers": layers}
    with torch.device("meta"):
        tower = AutoModel.from_config(config_from_dict(values, "tower"))
        tower.set_attn_implementation("eager")
        pixels = torch.empty(1, 3, 336, 336)
    return flops(lambda: tower(pixel_values=pixels))


def language_flops(tokens, logits):
    """Vicuna-13B over ``tokens`` rows."""
    model = language_model()
    model.set_attn_implementation("eager")
    rows = torch.empty(1, tokens, 5120, device="meta")
    body = flops(lambda: model(inputs_embeds=rows))
    return body + 2 * logits * 5120 * 32000


def language_model():
    values = load_recipe("llava-uhd-13b").language_model.config
    with torch.device("meta"):
        return AutoModel.from_config(config_from_dict(dict(values), "language_model"))


def resampler_flops(**options):
    with torch.device("meta"):
        context = StageContext((1024,), 1024, (24, 24), 5120)
        stage = UhdResampler(UhdResamplerConfig(**options), context)
        features = torch.empty(1, 576, 1024)
    return flops(lambda: stage.compress(features, (24, 24)))


@pytest.mark.slow
def test_flops_at_13b_are_those_of_the_paper():
    mlp = 2 * 576 * (1024 * 5120 + 5120 * 5120)
    llava = tower_flops(24) + mlp + language_flops(576, 576)
    tower = tower_flops(23)
    perceiver = resampler_flops(grid=8, attention="all")
    regions = resampler_flops(grid=12)
    uhd_64 = VIEWS * (tower + perceiver) + language_flops(VIEWS * 64, 0)
    uhd_144 = VIEWS * (tower + regions) + language_flops(VIEWS * 144, 0)
    assert perceiver == pytest.approx(77e9, rel=0.01)
    assert regions == pytest.approx(165e9, rel=0.01)
    assert llava == pytest.approx(15.50e12, rel=0.01)
    assert uhd_64 == pytest.approx(14.64e12, rel=0.02)
    assert uhd_64 / llava == pytest.approx(0.94, abs=0.01)
    assert uhd_144 == pytest.approx(30.13e12, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trained", "fixed"),
    [("llava-uhd-13b", 137_103_360, 737_280), ("llava-uhd-7b", 88_711_168, 589_824)],
)
def test_recipes_have_the_released_sizes(name, trained, fixed):
    recipe = load_recipe(name)
    model = meta_model(recipe)
    counts = part_parameters(model)
    assert counts["connector.uhd-resampler"] == trained
    assert sum(b.numel() for b in model.model.multi_modal_projector.buffers()) == fixed
    assert counts["layout"] == 0
    if name == "llava-uhd-13b":
        spec = recipe.pipeline(recipe.model_config_for())
        cost = measure_cost(model, spec, (1008, 672), text_tokens=1)
        assert (cost.views, cost.visual_tokens) == (7, 1014)
        total = sum(cost.encode_flops.values()) + cost.connect_flops + cost.prefill_flops
        # the paper's 30.13 and six separators, the tower's last layer, one token of text
        assert total == pytest.approx(30.37e12, rel=0.005)
