"""FLOPs of LLaVA-SP at 7B, against sums done by hand from the published sizes."""

import pytest
from sp_vs_mlp import BASE, BUDGET, SP, TEXT_TOKENS, flop_ratios, flops, nano_pair

WIDTH, LAYERS, INNER, VOCABULARY = 4096, 32, 11008, 32001
TOWER, GRID, SCALES = 1024, 24, (4, 8, 12, 16, 20, 24)
SPATIAL = 512


def _layer(tokens, width, inner, products):
    """A layer's weights (four attention matrices, `products` of the MLP) and its full square."""
    weights = 4 * width**2 + products * width * inner
    return 2 * tokens * weights + 4 * tokens**2 * width


def _prefill(tokens):
    return LAYERS * _layer(tokens, WIDTH, INNER, 3) + 2 * WIDTH * VOCABULARY


def _decode(context):
    weights = 4 * WIDTH**2 + 3 * WIDTH * INNER
    return LAYERS * (2 * weights + 4 * (context + 1) * WIDTH) + 2 * WIDTH * VOCABULARY


def _projector(tokens):
    return 2 * tokens * (TOWER * WIDTH + WIDTH**2)


def _windows():
    """One full convolution per scale that fills its window: one output of every channel."""
    return sum(2 * size**2 * TOWER * SPATIAL for size in SCALES)


def _detail():
    """A 16x16 convolution at stride 2, then attention of six queries to what it gives."""
    tokens = ((GRID - 16) // 2 + 1) ** 2
    convolution = 2 * tokens * 16**2 * TOWER * SPATIAL
    projections = 2 * (6 + 2 * tokens) * SPATIAL**2
    return convolution + projections + 2 * (2 * 6 * tokens * SPATIAL)


@pytest.fixture(scope="module")
def counts():
    return {name: flops(name) for name in (BASE, *SP)}


@pytest.mark.slow
def test_the_baseline_costs_what_its_sizes_say(counts):
    row = counts[BASE]
    patches = GRID**2
    tower = 24 * _layer(patches + 1, TOWER, 4096, 2) + 2 * patches * 3 * 14**2 * TOWER
    assert row["visual_tokens"] == patches
    assert row["encode"] == tower
    assert row["connect"] == _projector(patches)
    assert row["prefill"] == _prefill(patches + TEXT_TOKENS)
    assert row["decode_step"] == _decode(patches + TEXT_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SP)
def test_six_spatial_tokens_cost_six_tokens_and_nothing_else(counts, name):
    row = counts[name]
    assert row["visual_tokens"] == GRID**2 + 6
    assert row["encode"] == counts[BASE]["encode"]
    assert row["prefill"] == _prefill(GRID**2 + 6 + TEXT_TOKENS)
    assert row["decode_step"] == _decode(GRID**2 + 6 + TEXT_TOKENS)


@pytest.mark.slow
def test_connectors_cost_what_their_sizes_say(counts):
    cropping, pooling = (counts[name]["connect"] for name in SP)
    patches = _projector(GRID**2)
    assert pooling == patches + _windows() + 2 * 6 * SPATIAL * WIDTH
    assert cropping == patches + _windows() + _detail() + 2 * 6 * 2 * SPATIAL * WIDTH


@pytest.mark.slow
@pytest.mark.parametrize("name", SP)
def test_llava_sp_stays_within_its_budget(counts, name):
    assert all(1 < r <= BUDGET for r in flop_ratios(counts[name], counts[BASE]).values())


@pytest.mark.slow
def test_the_timed_pair_differs_by_the_spatial_tokens_alone():
    pair = nano_pair(pooled=True)
    ours, base = pair["llava-sp"], pair["mlp"]
    assert ours.model.language_model is base.model.language_model
    assert ours.model.vision_tower is base.model.vision_tower
    ours_names, base_names = (
        [resolved.name for resolved in model.model.plan.chain] for model in (ours, base)
    )
    assert ["mlp" if name == "llava-sp" else name for name in ours_names] == base_names
