"""Options of ``llava-sp`` and the rules that turn them into sizes for a given feature grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vistoken.core.parts import Grid

Variant = Literal["cropping", "pooling"]
Kernel = Literal["full", "separable", "low_rank"]
SpatialTokens = Literal["all", "none"]

NUM_SCALES = 6
"""Spatial tokens of the default scales; the paper's ablation finds six best."""


@dataclass(frozen=True)
class LlavaSPConfig:
    """Options of ``llava-sp``.

    Args:
        variant: ``cropping`` looks at concentric central windows, ``pooling`` at the whole grid
            averaged to ever finer sizes.
        detail: Fuse detail tokens into the spatial ones by cross-attention; None means yes for
            cropping and no for pooling, as released.
        scales: Window or pooled sizes, smallest first: integers (square) or [rows, cols]; None
            takes six evenly spaced ones for the grid at hand.
        width: Channels M of a spatial token before projection.
        mlp_hidden: Width between the patch projector's layers; None takes the decoder's size.
        kernel: ``full`` convolutions as in the paper, ``separable`` (depthwise then pointwise)
            or ``low_rank`` (through ``rank`` channels).
        rank: Inner channels of ``low_rank`` kernels.
        detail_kernel: Kernel size of the detail convolution; None takes two thirds of the grid.
        detail_stride: Its stride.
        spatial_tokens: ``all``, or ``none`` for plain LLaVA-1.5 (patch projector only).
    """

    variant: Variant = "cropping"
    detail: bool | None = None
    scales: tuple[int | Grid, ...] | None = None
    width: int = 512
    mlp_hidden: int | None = None
    kernel: Kernel = "full"
    rank: int | None = None
    detail_kernel: int | Grid | None = None
    detail_stride: int = 2
    spatial_tokens: SpatialTokens = "all"

    def __post_init__(self) -> None:
        for field, choices in (
            ("variant", get_args(Variant)),
            ("kernel", get_args(Kernel)),
            ("spatial_tokens", get_args(SpatialTokens)),
        ):
            value = getattr(self, field)
            if value not in choices:
                raise ValueError(f"{field} must be one of {', '.join(choices)}, got {value!r}")
        for field in ("width", "mlp_hidden", "rank", "detail_stride"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field} must be a positive integer, got {value!r}")
        if (self.rank is not None) != (self.kernel == "low_rank"):
            raise ValueError(f"kernel {self.kernel!r} and rank {self.rank}: low_rank alone has one")
        if self.scales is not None:
            scales = tuple(_read_size(scale, "scales") for scale in self.scales)
            if not scales:
                raise ValueError("scales is empty; use spatial_tokens: none for no spatial tokens")
            object.__setattr__(self, "scales", scales)
        if self.detail_kernel is not None:
            object.__setattr__(
                self, "detail_kernel", _read_size(self.detail_kernel, "detail_kernel")
            )

    @property
    def has_detail(self) -> bool:
        """Whether detail tokens are fused into the spatial ones."""
        return self.variant == "cropping" if self.detail is None else self.detail

    def scales_for(self, grid: Grid) -> tuple[Grid, ...]:
        """Size (rows, cols) of every scale on a feature grid, in order.

        Raises:
            ValueError: A scale that does not fit the grid or cannot be centred on it.
        """
        if self.scales is None:
            per_axis = [default_scales(side, self.variant) for side in grid]
            return tuple(zip(*per_axis, strict=True))
        sizes = tuple(as_size(scale) for scale in self.scales)
        for size in sizes:
            for scale, side in zip(size, grid, strict=True):
                if scale > side:
                    raise ValueError(
                        f"scale {scale} is larger than the feature grid's side {side}; "
                        f"use scales up to {side}"
                    )
                if self.variant == "cropping" and (side - scale) % 2:
                    raise ValueError(
                        f"a window of {scale} cannot be centred on a side of {side} cells; "
                        f"use {scale + 1} or {max(scale - 1, 2 - side % 2)}"
                    )
        return sizes

    def detail_kernel_for(self, grid: Grid) -> Grid:
        """Kernel size (rows, cols) of the detail convolution on a feature grid.

        Raises:
            ValueError: The kernel is larger than the grid.
        """
        if self.detail_kernel is None:
            return (2 * grid[0] + 1) // 3, (2 * grid[1] + 1) // 3
        kernel = as_size(self.detail_kernel)
        if kernel[0] > grid[0] or kernel[1] > grid[1]:
            raise ValueError(
                f"detail_kernel {kernel[0]}x{kernel[1]} is larger than the feature grid "
                f"{grid[0]}x{grid[1]}; leave it out to get two thirds of the grid"
            )
        return kernel


def default_scales(side: int, variant: Variant, count: int = NUM_SCALES) -> tuple[int, ...]:
    """Evenly spaced scales round(side * i / count), i = 1..count, halves rounded up.

    For cropping, a scale whose parity differs from the side's is raised by one, so that its
    window stays centred.
    """
    scales = [max((2 * side * i + count) // (2 * count), 1) for i in range(1, count + 1)]
    if variant == "cropping":
        scales = [scale + (side - scale) % 2 for scale in scales]
    return tuple(scales)


def as_size(value: int | Grid) -> Grid:
    """(rows, cols) of a size given as one integer or as a pair."""
    return (value, value) if isinstance(value, int) else value


def _read_size(value: int | Sequence[int], field: str) -> int | Grid:
    sides = [value] if isinstance(value, int) else list(value)
    if len(sides) not in (1, 2) or not all(isinstance(s, int) and s > 0 for s in sides):
        raise ValueError(f"{field} needs positive integers or [rows, cols] pairs, got {value!r}")
    return sides[0] if isinstance(value, int) else (sides[0], sides[-1])
