"""Enhancement: windows, exact sizes, tokens where the map says, composition and refusals."""

from __future__ import annotations

import logging

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorState, StageContext
from vistoken.core.registry import make_config
from vistoken.core.tables import TOKEN, VIEW
from vistoken.models.build import build
from vistoken.models.pipeline import TokenPlan
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.systems.inf_llava.config import InfDcmConfig, InfDemConfig
from vistoken.systems.inf_llava.enhancing import DualEnhancement
from vistoken.systems.inf_llava.grids import split_local
from vistoken.systems.inf_llava.stage import InfDem
from vistoken.systems.inf_llava.views import InfDcm

SP = {"part": "llava-sp", "options": {"variant": "pooling", "width": 8, "scales": [2, 4]}}


def state_for(kit, n, grid=(2, 3), width=4, pictures=((90, 70),), global_views="all", maps=None):
    """A call's state: random features, or what ``maps`` makes of each view."""
    tower = kit.tower((grid[0] * 14, grid[1] * 14))
    views = InfDcm(InfDcmConfig(n=n, global_views=global_views), [tower])
    table = torch.cat([views.view_table(*size) for size in pictures])
    make = maps or (lambda view: torch.randn(*grid, width))
    features = [make(view) for view in table]
    return ConnectorState(
        table,
        list(range(len(table))),
        [(f,) for f in features],
        [f.flatten(0, 1) for f in features],
        [grid] * len(table),
    )


def stage_of(width=4, grid=(2, 3), **options):
    config = make_config(InfDemConfig, options, "inf-dem")
    return InfDem(config, StageContext((width,), width, grid, 40))


def pico_with(views, connector, **changes):
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"views": views, "connector": connector, **changes}
    return build(parse_recipe(values, "inf"))


def dcm(**options):
    return {"part": "inf-dcm", "options": options}


def dem(**options):
    return {"part": "inf-dem", "options": options}


def test_parameter_count_of_the_release():
    with torch.device("meta"):
        module = DualEnhancement(1024)
    assert sum(p.numel() for p in module.parameters()) == 4_400_256
    linears = [module.attention.query, module.attention.key, module.attention.output]
    assert all(linear.weight.shape == (1024, 1024) for linear in linears)


def test_projections_start_equal():
    attention = DualEnhancement(16).attention
    for linear in (attention.key, attention.value, attention.output):
        assert torch.equal(linear.weight, attention.query.weight)
        assert linear.weight is not attention.query.weight


def test_one_view_of_each_is_plain_self_attention():
    module = DualEnhancement(16).double()
    x = torch.randn(1, 3, 2, 16, dtype=torch.float64)
    from_global, from_local = module.exchange(x, x, 1)
    a = module.attention
    q, k, v = (p(x.flatten(1, 2)).unflatten(-1, (8, 2)) for p in (a.query, a.key, a.value))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(2**0.5).softmax(-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
    expected = a.norm(a.output(mixed) + x.flatten(1, 2)).view_as(x)
    torch.testing.assert_close(from_global, expected)
    torch.testing.assert_close(from_local, expected)


@pytest.mark.parametrize("n", [2, 3])
def test_windows_do_not_leak(n):
    module = DualEnhancement(16)
    side = (2 * n, 3 * n)
    local, strided = torch.randn(1, *side, 16), torch.randn(1, *side, 16)
    before = module.exchange(local, strided, n)

    def changed(y, x, of):
        maps = {"local": local.clone(), "strided": strided.clone()}
        maps[of][0, y, x] += 1.0
        after = module.exchange(maps["local"], maps["strided"], n)
        return [
            {tuple(p) for p in ((b - a).abs().amax(-1)[0] > 1e-7).nonzero().tolist()}
            for a, b in zip(before, after, strict=True)
        ]

    y, x = side[0] - 1, n + 1
    in_global, in_local = changed(y, x, "strided")
    assert in_global == {(y, x)}  # a query there
    phase = {(a, b) for a in range(y % n, side[0], n) for b in range(x % n, side[1], n)}
    assert in_local == phase  # a key there
    in_global, in_local = changed(y, x, "local")
    window = {
        (a, b)
        for a in range(side[0])
        for b in range(side[1])
        if a // 2 == y // 2 and b // 3 == x // 3
    }
    assert in_global == window
    assert in_local == {(y, x)}


def test_attention_products_cost_a_share_of_full_attention():
    def products(n):
        module = DualEnhancement(32).eval()
        maps = torch.randn(1, 12, 12, 32)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module.exchange(maps, maps, n)
        projections = 2 * 8 * 12 * 12 * 32 * 32  # eight of them, at any n
        return counter.get_total_flops() - projections

    assert products(3) * 9 == pytest.approx(products(1), rel=0.01)


def test_shapes_at_full_size_without_memory(kit):
    with torch.device("meta"):
        stage = InfDem(InfDemConfig(), StageContext((1024,), 1024, (24, 24), 4096))
    state = state_for(kit, 3, (24, 24), maps=lambda _: torch.empty(24, 24, 1024, device="meta"))
    assert len(state.tokens) == 19
    (tokens,) = stage(state).tokens
    assert tokens.shape == (576, 1024)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["mean", "local", "global"])
@pytest.mark.parametrize("pool", ["bilinear", "average", "none"])
def test_tokens_come_out_where_the_map_says(kit, n, mode, pool):
    """Features are their own places in the original, and so must the tokens be."""
    grid = (2, 3)
    state = state_for(
        kit,
        n,
        grid,
        pictures=((90, 70), (41, 300)),
        maps=lambda view: kit.coordinate_map(view, grid)[..., :2] - kit.offset,
    )
    fuse = "none" if pool == "none" else "mean"
    stage = stage_of(2, grid, mode=mode, pool=pool, fuse_base=fuse)
    produced = stage(state)
    plan = plan_of(kit, n, grid, {"mode": mode, "pool": pool, "fuse_base": fuse})
    per_picture = len(state.tokens) // 2
    for number, tokens in enumerate(produced.tokens):
        table = state.view_table[number * per_picture : (number + 1) * per_picture]
        (view_map,) = plan.view_maps(table)
        assert len(view_map.tokens) == len(tokens)
        assert view_map.grid == produced.grids[number]
        assert int(VIEW.get(view_map.view, "index")) == per_picture - 1
        boxes = torch.stack(
            [TOKEN.get(view_map.tokens, side) for side in ("top", "left", "bottom", "right")], -1
        )
        middle = torch.stack([boxes[:, ::2].mean(1), boxes[:, 1::2].mean(1)], -1)
        # a strided view's cells are as large as the undivided view's and overlap: within one
        slack = (boxes[0, 2:] - boxes[0, :2]).max().item() * n
        exact = pool != "none" or mode == "local"
        torch.testing.assert_close(tokens, middle, rtol=0, atol=0.02 if exact else slack)


def plan_of(kit, n, grid, options):
    from vistoken.models.pipeline import PartSpec, PipelineSpec, TowerSpec

    tower = TowerSpec("toy", (grid[0] * 14, grid[1] * 14), 14, width=2)
    chain = (PartSpec("inf-dem", options, "inf-dem"), PartSpec("mlp", {}, "mlp"))
    views = PartSpec("inf-dcm", {"n": n}, "inf-dcm")
    return TokenPlan(PipelineSpec((tower,), chain, PartSpec("plain"), 2, views))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_views_that_nothing_reads_can_be_left_out(kit, n):
    stage = stage_of(16, heads=4)
    full = state_for(kit, n, width=16)
    if n % 2:  # the central strided view is the undivided picture
        full.tokens[n * n + n * n // 2] = full.tokens[-1]
    kept = [
        number
        for number, view in enumerate(full.view_table)
        if VIEW.get(view, "kind") != 3 or (n % 2 == 0 and is_central(view, n))
    ]
    live = state_for(kit, n, width=16, global_views="live")
    assert len(live.tokens) == len(kept)
    live.tokens = [full.tokens[number] for number in kept]
    torch.testing.assert_close(stage(live).tokens[0], stage(full).tokens[0], rtol=0, atol=1e-5)


def is_central(view, n):
    return all(int(VIEW.get(view, axis)) in (n // 2 - 1, n // 2) for axis in ("row", "col"))


def test_pictures_together_are_pictures_alone(kit):
    stage = stage_of(16)
    state = state_for(kit, 2, width=16, pictures=((90, 70), (30, 40), (5, 900)))
    together = stage(state).tokens
    for number in range(3):
        part = slice(9 * number, 9 * number + 9)
        alone = ConnectorState(
            state.view_table[part], list(range(9)), state.features[part], state.tokens[part],
            state.grids[part], {"seen": list(torch.arange(9))},
        )  # fmt: skip
        result = stage(alone)
        torch.testing.assert_close(result.tokens[0], together[number], rtol=0, atol=1e-6)
        assert result.anchors == [8]
        assert [int(v) for v in result.side["seen"]] == [8]


def test_a_call_without_pictures_passes():
    state = ConnectorState(VIEW.make(0), [], [], [], [])
    assert stage_of(16)(state).tokens == []


@pytest.mark.parametrize(
    ("connector", "count"),
    [
        ([dem(), "mlp"], 16),
        ([dem(fuse_base="concat", share_attention=False), "mlp"], 16),
        ([dem(pool="none", fuse_base="none"), "mlp"], 64),
        ([dem(), SP], 18),
        ([dem(), SP, {"part": "pool", "options": {"grid": [2, 2]}}], 6),
    ],
    ids=["dem", "concat", "unpooled", "llava-sp", "llava-sp-pool"],
)
def test_the_model_makes_what_is_predicted(connector, count):
    model, processor = pico_with(dcm(n=2), connector)
    sizes = [(30, 90), (64, 64), (1, 1)]
    pictures = [Image.new("RGB", (w, h), (9, 99, 199)) for h, w in sizes]
    inputs = processor.image_processor(pictures)
    with torch.no_grad():
        features = model.get_image_features(**inputs)
        singles = [model.get_image_features(**processor.image_processor([p])) for p in pictures]
    assert [len(t) for t in features.pooler_output] == [count] * 3
    for number, (size, single) in enumerate(zip(sizes, singles, strict=True)):
        expected = processor.image_processor.token_map(*size)
        assert torch.equal(TOKEN.set(features.token_map[number], media=-1), expected)
        torch.testing.assert_close(
            features.pooler_output[number], single.pooler_output[0], rtol=0, atol=1e-5
        )


def test_a_non_square_tower_and_round_trip(tmp_path):
    from vistoken.models import VistokenForConditionalGeneration, VistokenProcessor

    values = load_recipe("pico").model_dump(exclude_none=True)
    tower = values["towers"][0] | {
        "size": [28, 42],
        "config": {
            "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
        },
    }  # fmt: skip
    model, processor = pico_with(dcm(n=3), [dem(), "mlp"], towers=[tower])
    inputs = processor.image_processor([Image.new("RGB", (90, 50), (1, 200, 3))])
    assert inputs["pixel_values"].shape == (19, 3, 28, 42)
    with torch.no_grad():
        before = model.get_image_features(**inputs).pooler_output[0]
    assert len(before) == 2 * 3
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = VistokenForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = VistokenProcessor.from_pretrained(tmp_path).image_processor(
        [Image.new("RGB", (90, 50), (1, 200, 3))]
    )
    with torch.no_grad():
        after = again.get_image_features(**inputs).pooler_output[0]
    assert torch.equal(before, after)


def test_dead_views_are_told_once(kit, caplog, monkeypatch):
    monkeypatch.setattr("vistoken.systems.inf_llava.cutting._told", set())
    stage = stage_of(16)
    with caplog.at_level(logging.WARNING):
        for n in (2, 3, 3):
            stage(state_for(kit, n, width=16))
        stage(state_for(kit, 3, width=16, global_views="live"))
        stage_of(16, pool="average")(state_for(kit, 3, width=16))
    (record,) = caplog.records
    assert "at n = 3 bilinear pooling reads 1 of the 9 strided views" in record.message


def test_refusals(kit):
    for options, message in (
        ({"mode": "both"}, "mode must be one of dual, mean, local, global"),
        ({"heads": 0}, "heads must be a positive whole number"),
        ({"pool": "max"}, "pool must be one of"),
        ({"pool": "none"}, "set fuse_base: none"),
    ):
        with pytest.raises(UsageError, match=message):
            make_config(InfDemConfig, options, "inf-dem")
    with pytest.raises(UsageError, match="feature width 24 is not divisible by 16"):
        InfDem.context_after(InfDemConfig(), StageContext((24,), 24, (2, 2), 8))
    with pytest.raises(UsageError, match="feature width 32 is not divisible by 5 heads"):
        InfDem.context_after(InfDemConfig(heads=5), StageContext((32,), 32, (2, 2), 8))
    with pytest.raises(UsageError, match="set global_views: all"):
        stage_of(16, pool="average")(state_for(kit, 3, width=16, global_views="live"))
    state = state_for(kit, 2, width=16)
    short = ConnectorState(
        state.view_table[:8], list(range(8)), state.features[:8], state.tokens[:8], state.grids[:8]
    )
    with pytest.raises(UsageError, match=r"needs 2\*n\*n \+ 1 views .* got 4 tiles, 4 strided"):
        stage_of(16)(short)
    _, processor = pico_with("pad", [dem(), "mlp"])
    with pytest.raises(UsageError, match="set views: inf-dcm"):
        processor.image_processor.token_map(30, 40)
    _, processor = pico_with(dcm(n=2), [dem(pool="none", fuse_base="none"), SP])
    with pytest.raises(UsageError, match="built for a feature grid of 4x4 and got a view of 8x8"):
        processor.image_processor.token_map(30, 40)


def test_gradients_reach_the_views_that_count(kit):
    """Pitfall: at n = 3 bilinear pooling leaves eight of nine strided views without gradient."""
    for pool, wanted in (("bilinear", 1), ("average", 9)):
        state = state_for(kit, 3, (3, 4), width=16)
        state.tokens = [tokens.requires_grad_() for tokens in state.tokens]
        stage_of(16, pool=pool)(state).tokens[0].square().sum().backward()
        touched = [bool(t.grad is not None and (t.grad != 0).any()) for t in state.tokens]
        assert all(touched[:9])
        assert sum(touched[9:18]) == wanted


def test_local_windows_are_tiles():
    whole = torch.arange(24).view(1, 4, 6, 1)
    assert split_local(whole, 2)[0, 3, ..., 0].tolist() == [[15, 16, 17], [21, 22, 23]]
