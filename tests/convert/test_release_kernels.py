"""Scales of a LLaVA-SP release, told by its kernels' names; a lost kernel is not another model."""

import pytest
import torch

from vistoken.core.errors import WeightsError
from vistoken.systems.llava_sp.release_keys import LlavaSPKeys


def release(variant: str, sizes: list[int]) -> dict[str, torch.Tensor]:
    """Tensors with a release's names; the largest kernel is never pooled."""
    state = {"mm_projector.0.weight": torch.zeros(8, 4)}
    for size in sizes:
        pooled = variant == "pooling" and size != max(sizes)
        name = f"conv_{size}.1.weight" if pooled else f"conv_{size}.weight"
        state[name] = torch.zeros(2, 4, size, size)
    if variant == "cropping":
        state["conv_linear.1.bias"] = torch.zeros(8)
    return state


@pytest.mark.parametrize(
    ("variant", "side", "sizes"),
    [
        ("pooling", 24, [4, 8, 12, 16, 20, 24]),
        ("cropping", 24, [4, 8, 12, 16, 20, 24]),
        ("cropping", 16, [4, 6, 8, 12, 14, 16]),
        ("pooling", 16, [3, 5, 8, 11, 13, 16]),
        ("cropping", 27, [5, 9, 15, 19, 23, 27]),
        ("pooling", 27, [5, 9, 14, 18, 23, 27]),
        ("pooling", 24, [4, 12, 24]),
        ("cropping", 24, [4, 12, 24]),
        ("pooling", 24, [5, 7, 24]),
        ("pooling", 24, [8, 16, 24]),
        ("pooling", 24, [24]),
    ],
)
def test_a_complete_release_is_taken(variant, side, sizes) -> None:
    options = LlavaSPKeys.options(release(variant, sizes), (side, side))
    assert (options["variant"], options["scales"]) == (variant, sizes)


@pytest.mark.parametrize(
    ("variant", "side", "sizes", "lost"),
    [
        ("pooling", 24, [4, 12, 16, 20, 24], "conv_8"),
        ("cropping", 24, [4, 8, 12, 24], "conv_16, conv_20"),
        ("pooling", 24, [4, 8, 12, 16, 20], "conv_24"),
        ("cropping", 16, [4, 6, 12, 14, 16], "conv_8"),
        ("pooling", 16, [3, 5, 8, 11, 16], "conv_13"),
        ("pooling", 27, [5, 9, 14, 18, 23], "conv_27"),
        ("pooling", 24, [8, 24], "conv_16"),
        ("pooling", 24, [5, 7], "conv_24"),
    ],
)
def test_a_lost_kernel_is_named(variant, side, sizes, lost) -> None:
    with pytest.raises(WeightsError, match=f"lacks the weights of {lost} "):
        LlavaSPKeys.options(release(variant, sizes), (side, side))


def test_kernels_of_another_grid_are_refused() -> None:
    with pytest.raises(WeightsError, match="grid's side 16"):
        LlavaSPKeys.options(release("pooling", [4, 8, 12, 16, 20, 24]), (16, 16))


def test_one_size_under_two_names_is_refused() -> None:
    state = release("pooling", [4, 8, 12, 16, 20, 24])
    state["conv_24.1.weight"] = state["conv_24.weight"]
    with pytest.raises(WeightsError, match="two models"):
        LlavaSPKeys.options(state, (24, 24))
