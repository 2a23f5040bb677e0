"""The enhancement written out at n = 1, and full-size shapes of two pictures without memory."""

from __future__ import annotations

import torch

from vistoken.core.parts import ConnectorState, StageContext, TowerInput
from vistoken.core.registry import load_part, make_config
from vistoken.systems.inf_llava.config import InfDcmConfig, InfDemConfig
from vistoken.systems.inf_llava.stage import InfDem
from vistoken.systems.inf_llava.views import InfDcm

WIDTH, GRID = 16, (2, 3)


def state_of(views, table, grid):
    tokens = [view.flatten(0, 1) for view in views]
    anchors = list(range(len(views)))
    return ConnectorState(table, anchors, [(v,) for v in views], tokens, [grid] * len(views))


def table_of(n, side, patch, pictures=1):
    tower = TowerInput("t", side, (0.5,) * 3, (0.5,) * 3, stride=patch)
    return InfDcm(InfDcmConfig(n=n), [tower]).view_table(1100, 900).repeat(pictures, 1)


def test_one_tile_is_enhanced_by_itself():
    """Local and strided view are one tensor x: U = V = A(x, x, x), then branches, sum and norm."""
    stage = InfDem(InfDemConfig(), StageContext((WIDTH,), WIDTH, GRID, 40)).double().eval()
    x, base = torch.randn(2, *GRID, WIDTH, dtype=torch.float64)
    table = table_of(1, (28, 42), 14)
    assert len(table) == 3
    with torch.no_grad():
        (found,) = stage(state_of([x, x, base], table, GRID)).tokens
        module = stage.enhancement
        tokens, a = x.flatten(0, 1), module.attention
        q, k, v = (p(tokens).unflatten(-1, (8, 2)) for p in (a.query, a.key, a.value))
        weights = torch.einsum("qhd,khd->hqk", q, k).div(2**0.5).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        u = a.norm(a.output(mixed) + tokens)
        z = torch.cat([module.crop_ffn(u), module.stride_ffn(u)], -1)
        # pooling runs in float32, whatever the features are
        expected = (module.norm(z + u + u).float().double() + base.flatten(0, 1)) / 2
    torch.testing.assert_close(found, expected)


def test_two_pictures_at_full_size():
    """Nineteen views of 24 x 24 cells each become 576 tokens of the decoder's width."""
    width, text_width, grid = 1024, 4096, (24, 24)
    context = StageContext((width,), width, grid, text_width)
    mlp = load_part("project", "mlp")
    with torch.device("meta"):
        stage = InfDem(InfDemConfig(), context)
        project = mlp(make_config(mlp.config_class, {}, "mlp"), context)
        views = [torch.empty(*grid, width) for _ in range(2 * 19)]
    fused = stage(state_of(views, table_of(3, (336, 336), 14, pictures=2), grid))
    assert [tuple(t.shape) for t in fused.tokens] == [(576, width)] * 2
    assert [tuple(t.shape) for t in project(fused).tokens] == [(576, text_width)] * 2
