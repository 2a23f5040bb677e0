"""Half precision and batches of slices on a GPU, at the sizes of LLaVA-UHD 7B."""

from __future__ import annotations

import copy
import statistics
import time

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from vistoken.core.parts import StageContext
from vistoken.core.tables import VIEW, ViewKind
from vistoken.models.encoder import encode_views
from vistoken.models.pipeline import TowerSpec
from vistoken.models.recipe import load_recipe
from vistoken.systems.llava_uhd.config import UhdResamplerConfig, UhdSlicesConfig
from vistoken.systems.llava_uhd.resampler import UhdResampler
from vistoken.systems.llava_uhd.views import UhdSlices

DEVICE = "cuda"
TOWER = load_recipe("llava-uhd-7b").towers[0]
TEXT_WIDTH, QUERIES = 4096, 12

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def resampler():
    width = TOWER.config["hidden_size"]
    context = StageContext((width,), width, (24, 24), TEXT_WIDTH)
    with torch.random.fork_rng(), torch.device(DEVICE):
        torch.manual_seed(3)
        return UhdResampler(UhdResamplerConfig(QUERIES, compat="official"), context).eval()


@pytest.mark.parametrize("grid", [(24, 24), (19, 29), (9, 58)], ids=str)
@torch.no_grad()
def test_half_precision_is_near_float32(grid):
    """Of the resampler: relative error 2e-2, also where regions are thinner than a patch."""
    exact = resampler()
    coarse = copy.deepcopy(exact).bfloat16()
    width = TOWER.config["hidden_size"]
    features = torch.randn(6, grid[0] * grid[1], width, device=DEVICE).bfloat16()
    expected = exact.compress(features.float(), grid)
    found = coarse.compress(features, grid).float()
    assert found.isfinite().all()
    assert ((found - expected).norm() / expected.norm()).item() < 2e-2


@torch.inference_mode()
def test_six_slices_together_are_twice_as_fast_as_one_by_one():
    """Tower and resampler over the slices of 672x1008 pixels: 1,008 rows, 672 columns."""
    values = {k: v for k, v in TOWER.config.items() if k != "model_type"}
    config = CLIPVisionConfig(**values, attn_implementation="sdpa")
    with torch.device(DEVICE):
        tower = CLIPVisionModel(config).bfloat16().eval()
    stage = resampler().bfloat16()
    side, patch = TOWER.config["image_size"], TOWER.config["patch_size"]
    spec = TowerSpec("clip", (side, side), patch, TOWER.config["hidden_size"], prefix=1)
    table = UhdSlices(UhdSlicesConfig(), [spec.input]).view_table(3 * side, 2 * side)
    table = table[VIEW.get(table, "kind") == ViewKind.SLICE]
    assert len(table) == 6
    pixels = torch.randn(6, 3, side, side, device=DEVICE).bfloat16()

    def tokens(per_pass):
        maps, _ = encode_views([(spec, -2, tower)], pixels, table, per_pass)
        views = torch.stack([view[0].flatten(0, 1) for view in maps])
        passes = [stage.compress(part, spec.input.grid) for part in views.split(per_pass)]
        return torch.cat(passes)

    def seconds(per_pass):
        torch.cuda.synchronize()
        started = time.perf_counter()
        tokens(per_pass)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    together, alone = tokens(6).float(), tokens(1).float()
    assert together.shape == (6, QUERIES**2, TEXT_WIDTH)
    assert ((together - alone).norm() / alone.norm()).item() < 2e-2
    pairs = [(seconds(1), seconds(6)) for _ in range(16)][6:]
    assert statistics.median(loop / batch for loop, batch in pairs) >= 2.0
