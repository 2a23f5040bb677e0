"""Importer: names and options of official LLaVA-UHD v1 weights."""

from __future__ import annotations

import pytest
import torch

from vistoken.core.errors import WeightsError
from vistoken.core.parts import StageContext
from vistoken.core.registry import load_part, make_config, part_names
from vistoken.systems.llava_uhd.config import UhdResamplerConfig
from vistoken.systems.llava_uhd.release_keys import UhdKeys
from vistoken.systems.llava_uhd.resampler import UhdResampler

STEM = "mm_projector."
NAMES = {
    f"{STEM}{name}"
    for name in (
        "query",
        "pos_embed",
        "proj",
        "kv_proj.weight",
        "attn.in_proj_weight",
        "attn.in_proj_bias",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
        "ln_q.weight",
        "ln_q.bias",
        "ln_kv.weight",
        "ln_kv.bias",
        "ln_post.weight",
        "ln_post.bias",
    )
}


def stage_of(grid=4):
    return UhdResampler(UhdResamplerConfig(grid), StageContext((24,), 24, (4, 4), 32))


def release(grid=4):
    state = stage_of(grid).state_dict()
    return {name: state[ours] for ours, name in UhdKeys.official_names(state).items()}


def test_names_are_the_released_ones_and_load_strictly(case):
    assert set(release()) == NAMES
    _, tensors = case("spatial_resampler_g4")
    official = {k.replace("w.", STEM, 1): v for k, v in tensors.items() if k.startswith("w.")}
    assert UhdKeys.recognises(official)
    options = UhdKeys.options(official, (8, 8))
    assert options == {"grid": 4, "attention": "regions", "compat": "official"}
    config = make_config(UhdResamplerConfig, options, "uhd-resampler")
    stage = UhdResampler(config, StageContext((24,), 24, (8, 8), 32))
    names = UhdKeys.official_names(stage.state_dict())
    stage.load_state_dict({ours: official[name] for ours, name in names.items()}, strict=True)


def test_options_are_read_from_the_weights():
    assert UhdKeys.options(release(8), (24, 24))["attention"] == "all"
    assert UhdKeys.options(release(12), (24, 24))["grid"] == 12
    broken = release() | {f"{STEM}query": torch.zeros(7, 32)}
    with pytest.raises(WeightsError, match="7 queries form no square"):
        UhdKeys.options(broken, (8, 8))


def test_nobody_else_claims_these_weights():
    claiming = [
        n
        for n in part_names("importer")
        if load_part("importer", n).recognises(NAMES) and n != "llava"
    ]
    assert claiming == ["llava-uhd"]
    assert not UhdKeys.recognises({f"{STEM}0.weight", f"{STEM}0.bias"})
