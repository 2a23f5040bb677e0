"""Nineteen views of four pictures on a GPU, at the sizes of INF-LLaVA 8B: precision and memory."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from vistoken.core.parts import ConnectorState, StageContext
from vistoken.models.encoder import encode_views
from vistoken.models.pipeline import TowerSpec
from vistoken.models.recipe import load_recipe
from vistoken.systems.inf_llava.config import InfDcmConfig, InfDemConfig
from vistoken.systems.inf_llava.stage import InfDem
from vistoken.systems.inf_llava.views import InfDcm

DEVICE = "cuda"
TOWER = load_recipe("inf-llava-8b").towers[0]
PICTURES, VIEWS, TEXT_WIDTH = 4, 19, 4096

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def parts():
    """Tower, connector stage, pixels and view table on the CPU in float32."""
    config = CLIPVisionConfig(
        **{k: v for k, v in TOWER.config.items() if k != "model_type"},
        attn_implementation="sdpa",
    )
    spec = tower_spec()
    context = StageContext((spec.width,), spec.width, spec.input.grid, TEXT_WIDTH)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        tower = CLIPVisionModel(config).eval()
        stage = InfDem(InfDemConfig(), context).eval()
        pixels = torch.randn(PICTURES * VIEWS, 3, *spec.size)
    table = InfDcm(InfDcmConfig(n=3), [spec.input]).view_table(1100, 900)
    assert len(table) == VIEWS
    return tower, stage, pixels, table.repeat(PICTURES, 1)


def tower_spec():
    side, patch = TOWER.config["image_size"], TOWER.config["patch_size"]
    return TowerSpec("clip", (side, side), patch, TOWER.config["hidden_size"], prefix=1)


@torch.inference_mode()
def fused(tower, stage, pixels, table, micro_batch=None):
    """Tokens (B, N, C) of every picture, before the projection."""
    spec = tower_spec()
    features, _ = encode_views([(spec, -2, tower)], pixels, table, micro_batch)
    tokens = [view[0].flatten(0, 1) for view in features]
    anchors = list(range(len(table)))
    state = ConnectorState(table, anchors, features, tokens, [spec.input.grid] * len(anchors))
    return torch.stack(stage(state).tokens)


def on_gpu(tower, stage):
    return copy.deepcopy(tower).to(DEVICE, torch.bfloat16), copy.deepcopy(stage).to(
        DEVICE, torch.bfloat16
    )


def test_half_precision_on_a_gpu_is_near_float32_on_the_cpu(parts):
    tower, stage, pixels, table = parts
    expected = fused(tower, stage, pixels, table, micro_batch=VIEWS)
    found = fused(*on_gpu(tower, stage), pixels, table).float().cpu()
    assert found.shape == (PICTURES, tower_spec().input.grid[0] ** 2, tower_spec().width)
    assert ((found - expected).norm() / expected.norm()).item() < 3e-2


def test_passes_of_four_views_need_less_than_half_the_memory(parts):
    tower, stage, pixels, table = parts
    moved = on_gpu(tower, stage)

    def peak(micro_batch):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        fused(*moved, pixels, table, micro_batch)
        return torch.cuda.max_memory_allocated()

    assert peak(4) < 0.5 * peak(None)
