"""LLaVA-SP: parity with the release, its invariances, exact sizes, any grid, cheaper kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from vistoken.core.errors import UsageError, WeightsError
from vistoken.core.parts import ConnectorState, StageContext, ViewMap, grid_token_map
from vistoken.core.registry import load_part, make_config
from vistoken.core.tables import TOKEN, VIEW, TokenKind, rectangles
from vistoken.systems.llava_sp.config import LlavaSPConfig, default_scales
from vistoken.systems.llava_sp.keys import (
    infer_options,
    infer_variant,
    is_connector_key,
    to_house,
    to_official,
)
from vistoken.systems.llava_sp.low_rank import factorise, initialise_low_rank
from vistoken.systems.llava_sp.modules import DetailFeatureIntegrator, SpatialFeatureExtractor
from vistoken.systems.llava_sp.stage import ATTENTION, LlavaSP

GRIDS = [(16, 16), (24, 24), (27, 27), (32, 32), (24, 32)]
VARIANTS = [
    {"variant": "cropping"},
    {"variant": "pooling"},
    {"variant": "pooling", "detail": True},
    {"variant": "cropping", "kernel": "separable"},
    {"variant": "pooling", "kernel": "low_rank", "rank": 3},
]


def stage_of(context, **options):
    """A stage from plain options, as a configuration file gives them."""
    return LlavaSP(make_config(LlavaSPConfig, options, "llava-sp"), context)


def context_of(grid=(24, 24), channels=8, text=12):
    return StageContext((channels,), channels, grid, text)


def state_of(features):
    """State of a batch of feature maps (B, R, C, W), one view each."""
    count, rows, cols, _ = features.shape
    table = VIEW.make(count, index=torch.arange(count), height=14 * rows, width=14 * cols)
    return ConnectorState(
        table,
        list(range(count)),
        [(f,) for f in features],
        [f.flatten(0, 1) for f in features],
        [(rows, cols)] * count,
    )


def official(golden, name):
    """Reference tensors: features (B, R, C, W), expected tokens, weights by official name."""
    tensors = load_file(golden / f"llava-sp/{name}_small.safetensors")
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    features = tensors["input.hidden_state"][:, 1:].unflatten(1, (24, 24))
    return features, tensors["output.image_features"], weights


@pytest.mark.parametrize("name", ["cropping", "pooling", "pooling_detail"])
def test_tokens_equal_the_release(golden, name):
    features, expected, weights = official(golden, name)
    stage = stage_of(context_of(), **infer_options(weights))
    stage.load_state_dict(to_house(weights))
    state = stage(state_of(features))
    produced = torch.stack(state.tokens)
    torch.testing.assert_close(produced, expected, rtol=0, atol=2e-5)
    if name != "pooling":
        attention = torch.stack(state.side[ATTENTION])
        assert attention.shape == (len(features), 6, 25)
        torch.testing.assert_close(attention.sum(-1), torch.ones(len(features), 6))
    else:
        assert ATTENTION not in state.side


@pytest.mark.parametrize("name", ["cropping", "pooling", "pooling_detail"])
def test_official_names_both_ways(golden, name):
    _, _, weights = official(golden, name)
    variant = name.removesuffix("_detail")
    assert infer_variant(weights) == variant
    wrapped = {"base_model.model." + key: value for key, value in weights.items()}
    assert all(map(is_connector_key, wrapped))
    assert not is_connector_key("model.layers.0.self_attn.q_proj.weight")
    assert not is_connector_key("model.image_newline")
    house = to_house(wrapped)
    back = to_official(house)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_wrong_names_are_refused(golden):
    _, _, pooling = official(golden, "pooling")
    _, _, cropping = official(golden, "cropping")
    mixed = [k for k in pooling if "conv_4" in k] + [k for k in cropping if "conv_4" not in k]
    with pytest.raises(WeightsError, match="files of two models"):
        infer_variant(mixed)
    with pytest.raises(WeightsError, match="neither conv_<k> nor mm_projector"):
        infer_variant(["model.embed_tokens.weight"])
    with pytest.raises(WeightsError, match="not a connector weight"):
        to_house({"model.image_newline": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"mm_projector\.0"):
        infer_options({k: v for k, v in pooling.items() if "mm_projector.0" not in k})
    separable = stage_of(context_of(), variant="pooling", width=4, kernel="separable")
    with pytest.raises(WeightsError, match="no name in the official code"):
        to_official(separable.state_dict())
    plain = {k: v for k, v in pooling.items() if "mm_projector" in k}
    assert infer_options(plain) == {"spatial_tokens": "none", "mlp_hidden": 12}


def test_cropping_sees_only_its_window():
    stage = stage_of(context_of(), variant="cropping", width=4)
    features = torch.randn(1, 8, 24, 24, requires_grad=True)
    spatial = stage.spatial_extractor(features)
    changed = features.detach().clone()
    changed[:, :, 9, 12] += 1.0  # one row above the central 4x4 window
    after = stage.spatial_extractor(changed)
    assert torch.equal(after[:, 0], spatial[:, 0])
    assert not torch.allclose(after[:, 5], spatial[:, 5])
    for number, scale in enumerate((4, 8, 12, 16, 20, 24)):
        (grad,) = torch.autograd.grad(spatial[:, number].sum(), features, retain_graph=True)
        touched = grad.abs().sum((0, 1)) > 0
        expected = torch.zeros(24, 24, dtype=torch.bool)
        margin = (24 - scale) // 2
        expected[margin : 24 - margin, margin : 24 - margin] = True
        assert torch.equal(touched, expected)


def test_pooling_ignores_order_inside_a_window():
    stage = stage_of(context_of(), variant="pooling", width=4).double()
    features = torch.randn(1, 8, 24, 24, dtype=torch.float64)
    permuted = features.clone()
    window = features[:, :, 6:12, 12:18].flatten(2)
    permuted[:, :, 6:12, 12:18] = window[:, :, torch.randperm(36)].unflatten(2, (6, 6))
    before, after = stage.spatial_extractor(features), stage.spatial_extractor(permuted)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 5], before[:, 5])


@pytest.mark.parametrize("options", VARIANTS)
def test_spatial_tokens_come_first_and_leave_llava_behind(options):
    """Without them the stage is exactly LLaVA-1.5's projector, weight for weight."""
    context = context_of((6, 8))
    full = stage_of(context, width=4, **options)
    none = stage_of(context, spatial_tokens="none")
    mlp = load_part("project", "mlp")
    llava = mlp(mlp.config_class(), context)
    patches = {
        key.removeprefix("patch_projector."): value
        for key, value in full.state_dict().items()
        if key.startswith("patch_projector.")
    }
    llava.load_state_dict(patches)
    none.load_state_dict({f"patch_projector.{key}": value for key, value in patches.items()})
    features = torch.randn(2, 6, 8, 8)
    with_spatial = full(state_of(features)).tokens
    baseline = llava(state_of(features)).tokens
    for tokens, expected, bare in zip(
        with_spatial, baseline, none(state_of(features)).tokens, strict=True
    ):
        assert len(tokens) == 6 + 48
        torch.testing.assert_close(tokens[6:], expected, rtol=0, atol=1e-6)
        assert torch.equal(bare, expected)
    view = VIEW.make(1, height=84, width=112)[0]
    maps = [ViewMap(view, (6, 8), grid_token_map(view, (6, 8)))]
    predicted = LlavaSP.token_map(full.config, context, maps)[0].tokens
    assert (
        TOKEN.get(predicted, "kind").tolist() == [TokenKind.SPATIAL] * 6 + [TokenKind.VISUAL] * 48
    )
    assert TOKEN.get(predicted, "level").tolist() == [0, 1, 2, 3, 4, 5] + [-1] * 48
    assert LlavaSP.token_map(none.config, context, maps) == maps


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"variant": "pooling"}, {"spatial_projector": 2_097_152}),
        (
            {"variant": "cropping"},
            {
                "spatial_projector": 4_198_400,
                "detail_integrator.detail": 134_217_728,
                "detail_integrator": 134_217_728 + 791_040,
            },
        ),
    ],
)
def test_full_size_counts_are_exact(options, counts):
    with torch.device("meta"):
        stage = stage_of(context_of(channels=1024, text=4096), **options)
    counts |= {"spatial_extractor": 763_363_328, "patch_projector": 20_979_712}
    for name, expected in counts.items():
        assert sum(p.numel() for p in stage.get_submodule(name).parameters()) == expected
    top = {name for name, _ in stage.named_children()}
    total = sum(n for name, n in counts.items() if name in top)
    assert sum(p.numel() for p in stage.parameters()) == total


def test_full_size_flops():
    config = LlavaSPConfig(variant="cropping")
    with torch.device("meta"):
        extractor = SpatialFeatureExtractor(1024, config, (24, 24))
        integrator = DetailFeatureIntegrator(1024, config, (24, 24))
        features = torch.empty(1, 1024, 24, 24)
        with FlopCounterMode(display=False) as extraction:
            spatial = extractor(features)
        with FlopCounterMode(display=False) as integration:
            integrator(features, spatial)
    assert extraction.get_total_flops() == pytest.approx(1.53e9, rel=0.01)
    assert integration.get_total_flops() == pytest.approx(6.7e9, rel=0.01)
    with torch.device("meta"):
        separable = SpatialFeatureExtractor(
            1024, LlavaSPConfig(variant="pooling", kernel="separable"), (24, 24)
        )
    assert sum(p.numel() for p in separable.parameters()) == 4_636_672


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("options", VARIANTS)
def test_every_grid_forward_and_backward(grid, options):
    context = context_of(grid, channels=3, text=5)
    stage = stage_of(context, width=2, **options)
    features = torch.randn(2, *grid, 3, requires_grad=True)
    view = VIEW.make(1, height=14 * grid[0], width=14 * grid[1])[0]
    maps = [ViewMap(view, grid, grid_token_map(view, grid))]
    state = stage(state_of(features))
    predicted = LlavaSP.token_map(stage.config, context, maps)[0].tokens
    assert state.tokens[0].shape == (len(predicted), 5)
    torch.stack(state.tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.parameters())
    assert features.grad.abs().sum((0, 3)).min() > 0


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("variant", ["cropping", "pooling"])
def test_behind_clip_and_siglip(family, variant):
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 4,
    }
    torch.manual_seed(0)
    if family == "clip":
        tower = CLIPVisionModel(CLIPVisionConfig(**sizes))
    else:
        tower = SiglipVisionModel(SiglipVisionConfig(**sizes))
    hidden = tower(torch.randn(2, 3, 64, 64), output_hidden_states=True).hidden_states[-2]
    features = hidden[:, -256:].unflatten(1, (16, 16))  # without CLS, where there is one
    stage = stage_of(context_of((16, 16)), variant=variant, width=4)
    tokens = torch.stack(stage(state_of(features)).tokens)
    assert tokens.shape == (2, 262, 12)
    tokens.square().sum().backward()
    embedding = next(p for n, p in tower.named_parameters() if "patch_embedding" in n)
    assert embedding.grad.abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 9)] * 2),
    variant=st.sampled_from(["cropping", "pooling"]),
    scale=st.floats(0.2, 5),
    shift=st.floats(-50, 300),
)
def test_tokens_come_from_where_the_map_says(kit, grid, variant, scale, shift):
    """With averaging kernels, a spatial token of coordinates is its rectangle's centre."""
    context = context_of(grid, channels=4, text=4)
    stage = stage_of(context, variant=variant, width=4, detail=False).double()
    with torch.no_grad():
        for kernel in stage.spatial_extractor.kernels:
            area = kernel.weight.shape[2] * kernel.weight.shape[3]
            kernel.weight.copy_(torch.eye(4)[:, :, None, None].expand_as(kernel.weight) / area)
        for linear in (stage.spatial_projector, *stage.patch_projector.children()):
            linear.weight.copy_(torch.eye(4))
            if linear.bias is not None:
                linear.bias.zero_()
    view = VIEW.make(
        1, height=90, width=60, scale_y=scale, scale_x=2.0, shift_y=shift, shift_x=-9.0
    )[0]
    # The table stores rounded numbers: read them back through it.
    features = kit.coordinate_map(view, grid)[None].requires_grad_()
    tokens = stage(state_of(features)).tokens[0]
    maps = [ViewMap(view, grid, grid_token_map(view, grid))]
    predicted = LlavaSP.token_map(stage.config, context, maps)[0].tokens
    assert len(tokens) == len(predicted)
    boxes = rectangles(predicted)
    torch.testing.assert_close(
        tokens[:, :2].detach() - kit.offset, (boxes[:, :2] + boxes[:, 2:]) / 2, rtol=0, atol=0.02
    )
    extent = boxes[:6, 2:] - boxes[:6, :2]
    assert (extent.diff(dim=0) >= 0).all()  # smallest scale first
    # ... and each rectangle is exactly the cells that the token depends on
    cells = boxes[6:].view(*grid, 4)
    for token, box in zip(tokens[:6], boxes[:6], strict=True):
        (grad,) = torch.autograd.grad(token.sum(), features, retain_graph=True)
        seen = cells[grad[0].abs().sum(-1) > 0]
        union = torch.cat([seen[:, :2].min(dim=0).values, seen[:, 2:].max(dim=0).values])
        torch.testing.assert_close(box, union, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("side", "cropping", "pooling"),
    [
        (24, (4, 8, 12, 16, 20, 24), (4, 8, 12, 16, 20, 24)),
        (16, (4, 6, 8, 12, 14, 16), (3, 5, 8, 11, 13, 16)),
        (27, (5, 9, 15, 19, 23, 27), (5, 9, 14, 18, 23, 27)),
        (32, (6, 12, 16, 22, 28, 32), (5, 11, 16, 21, 27, 32)),
        (4, (2, 2, 2, 4, 4, 4), (1, 1, 2, 3, 3, 4)),
    ],
)
def test_default_scales(side, cropping, pooling):
    assert default_scales(side, "cropping") == cropping
    assert default_scales(side, "pooling") == pooling
    config = LlavaSPConfig(variant="pooling")
    assert config.scales_for((side, 24)) == tuple(zip(pooling, (4, 8, 12, 16, 20, 24), strict=True))


def test_explicit_scales_any_number_any_shape():
    """The release's eight-token variant for 16x16 grids, and rectangular kernels."""
    eight = stage_of(context_of((16, 16)), width=2, scales=[2, 4, 6, 8, 10, 12, 14, 16])
    assert len(eight(state_of(torch.randn(1, 16, 16, 8))).tokens[0]) == 8 + 256
    wide = stage_of(context_of((4, 8)), width=2, scales=[[2, 4], [4, 8]])
    assert wide.spatial_extractor.kernels[0].weight.shape[-2:] == (2, 4)
    assert len(wide(state_of(torch.randn(1, 4, 8, 8))).tokens[0]) == 2 + 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "crop"}, "variant must be one of cropping, pooling, got 'crop'"),
        ({"kernel": "low_rank"}, "low_rank alone has one"),
        ({"rank": 3}, "low_rank alone has one"),
        ({"width": 0}, "width must be a positive integer"),
        ({"scales": []}, "scales is empty"),
        ({"scales": [4, "8"]}, "scales needs positive integers"),
        ({"varient": "pooling"}, "did you mean 'variant'"),
        ({"spatial_tokens": "on"}, "spatial_tokens must be one of all, none"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make_config(LlavaSPConfig, options, "llava-sp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": [4, 28]}, "scale 28 is larger than the feature grid's side 24"),
        ({"scales": [5, 24]}, "a window of 5 cannot be centred on a side of 24 cells; use 6 or 4"),
        ({"detail_kernel": 25}, "detail_kernel 25x25 is larger"),
    ],
)
def test_options_that_do_not_fit_the_grid_are_refused(options, message):
    config = make_config(LlavaSPConfig, options, "llava-sp")
    with pytest.raises(UsageError, match=message):
        LlavaSP.context_after(config, context_of())


def test_a_view_of_another_grid_is_refused():
    context = context_of((4, 4))
    stage = stage_of(context, width=2)
    view = VIEW.make(1, height=56, width=70)[0]
    with pytest.raises(UsageError, match="built for a feature grid of 4x4 and got a view of 4x5"):
        LlavaSP.token_map(
            stage.config, context, [ViewMap(view, (4, 5), grid_token_map(view, (4, 5)))]
        )
    with pytest.raises(UsageError, match="built for a feature grid of 4x4"):
        stage(state_of(torch.randn(1, 4, 5, 8)))


def test_nan_is_not_hidden():
    stage = stage_of(context_of((4, 4)), width=2, variant="pooling")
    features = torch.randn(1, 4, 4, 8)
    features[0, 0, 0, 0] = torch.nan
    tokens = stage(state_of(features)).tokens[0]
    assert tokens[:6].isnan().all()


def test_low_rank_from_full_weights():
    context = context_of((6, 6), channels=5)
    options = {"variant": "cropping", "width": 4, "scales": [2, 4, 6]}
    full = stage_of(context, **options)
    state = state_of(torch.randn(3, 6, 6, 5))
    expected = torch.stack(full(state).tokens)
    errors = []
    for rank in (1, 2, 3, 4, 6):
        low = stage_of(context, kernel="low_rank", rank=rank, **options)
        reported = initialise_low_rank(low, full.state_dict())
        assert set(reported) == {
            *(f"spatial_extractor.kernels.{i}.weight" for i in range(3)),
            "detail_integrator.detail.weight",
        }
        errors.append(sum(reported.values()))
        if rank >= 4:  # the kernels have four output channels
            torch.testing.assert_close(torch.stack(low(state).tokens), expected, rtol=0, atol=1e-4)
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="kernel: low_rank"):
        initialise_low_rank(full, full.state_dict())


def test_reported_error_is_the_product_s():
    weight = torch.randn(6, 5, 3, 3)
    kernel, pointwise, error = factorise(weight, 2)
    product = torch.einsum("mr,rckl->mckl", pointwise[:, :, 0, 0], kernel)
    assert error == pytest.approx(((product - weight).norm() / weight.norm()).item(), rel=1e-4)
    best = torch.linalg.svdvals(weight.flatten(1))
    assert error == pytest.approx((best[2:].norm() / best.norm()).item(), rel=1e-4)
