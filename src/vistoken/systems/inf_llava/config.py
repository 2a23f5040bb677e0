"""Options of ``inf-dcm`` and ``inf-dem``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

MAX_SIDE = 4
"""Largest grid side n: at n = 4 a picture is 33 encoder passes already."""

BOTTLENECK = 16
"""The feed-forward branches narrow the channels by this factor."""

Fit = Literal["pad", "square"]
GlobalViews = Literal["all", "live"]
Compat = Literal["official", "fixed"]
Mode = Literal["dual", "mean", "local", "global"]
Pooling = Literal["bilinear", "average", "none"]
FuseBase = Literal["mean", "concat", "none"]


@dataclass(frozen=True)
class InfDcmConfig:
    """Options of ``inf-dcm``.

    Args:
        n: Side of the grid of local tiles and of strided global views, 1 to 4.
        fit: View function that makes the large picture which is cut: ``pad`` or ``square``.
        global_views: ``all`` n*n strided views, or only those that bilinear pooling reads
            (``live``); the result is the same and costs fewer encoder passes.
        compat: ``fixed`` cuts a picture of n times the tower's size. ``official`` prepares it at
            the tower's size and enlarges that, as the released evaluation does: no detail gained.
    """

    n: int = 3
    fit: Fit = "pad"
    global_views: GlobalViews = "all"
    compat: Compat = "fixed"

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or not 1 <= self.n <= MAX_SIDE:
            raise ValueError(f"n must be a whole number from 1 to {MAX_SIDE}, got {self.n!r}")
        _check_choice("fit", self.fit, get_args(Fit))
        _check_choice("global_views", self.global_views, get_args(GlobalViews))
        _check_choice("compat", self.compat, get_args(Compat))


@dataclass(frozen=True)
class InfDemConfig:
    """Options of ``inf-dem``; the grid side n is read from the views.

    Args:
        mode: ``dual`` exchanges the perspectives by attention, ``mean`` averages them (cropping
            without enhancement), ``local`` and ``global`` keep one of them.
        heads: Attention heads.
        share_attention: One attention block for both directions, as released.
        pool: From n*n views' cells to one view's: ``bilinear`` as released (reads the central
            cells only), ``average`` of all, or ``none`` (n*n times as many tokens).
        fuse_base: What becomes of the undivided view's features: averaged in (``mean``), added as
            further channels (``concat``) or left out (``none``).
    """

    mode: Mode = "dual"
    heads: int = 8
    share_attention: bool = True
    pool: Pooling = "bilinear"
    fuse_base: FuseBase = "mean"

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("pool", self.pool, get_args(Pooling))
        _check_choice("fuse_base", self.fuse_base, get_args(FuseBase))
        if not isinstance(self.heads, int) or self.heads < 1:
            raise ValueError(f"heads must be a positive whole number, got {self.heads!r}")
        if self.pool == "none" and self.fuse_base != "none":
            raise ValueError(
                "pool: none leaves n*n times as many cells as the undivided view has; set "
                "fuse_base: none with it"
            )

    def check_width(self, width: int) -> None:
        """Raise ValueError unless features of this many channels can be enhanced."""
        if self.mode != "dual":
            return
        if width % BOTTLENECK:
            raise ValueError(f"the feature width {width} is not divisible by {BOTTLENECK}")
        if width % self.heads:
            raise ValueError(f"the feature width {width} is not divisible by {self.heads} heads")


def live_phases(n: int) -> tuple[int, ...]:
    """Strided views that bilinear pooling from n times the grid reads, by number row * n + col.

    At scale 1 / n, corners not aligned, the sampling points fall on the central cell of every n*n
    block (odd n) or amid its four central ones (even n).
    """
    middle = ((n - 1) // 2, n // 2)
    return tuple(sorted({row * n + col for row in middle for col in middle}))


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}, got {value!r}")
