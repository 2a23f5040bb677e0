"""Options of the baseline parts; every class is one part's section of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vistoken.core.parts import Grid


@dataclass(frozen=True)
class PadConfig:
    """``pad`` has no options: the background is the tower's mean colour."""


@dataclass(frozen=True)
class SquareConfig:
    """``square`` has no options: the tower's own processor decides."""


@dataclass(frozen=True)
class AnyResConfig:
    """Options of ``anyres``.

    Args:
        grids: Allowed tile grids as (rows, cols), in the order in which ties are broken.
    """

    grids: tuple[Grid, ...] = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))

    def __post_init__(self) -> None:
        grids = tuple(as_grid(grid, "grids") for grid in self.grids)
        if not grids:
            raise ValueError("grids must name at least one tile grid, for example [[2, 1], [1, 2]]")
        object.__setattr__(self, "grids", grids)


@dataclass(frozen=True)
class ConcatGridConfig:
    """Options of ``concat-grid``.

    Args:
        grid: (rows, cols) that every tower's map is resized to, no finer than the first tower's;
            None keeps the first tower's own.
    """

    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.grid is not None:
            object.__setattr__(self, "grid", as_grid(self.grid, "grid"))


@dataclass(frozen=True)
class MlpConfig:
    """Options of ``mlp``.

    Args:
        hidden_width: Width between the two layers; None takes the decoder's hidden size.
    """

    hidden_width: int | None = None

    def __post_init__(self) -> None:
        if self.hidden_width is not None and self.hidden_width < 1:
            raise ValueError(f"hidden_width must be at least 1, got {self.hidden_width}")


@dataclass(frozen=True)
class PoolConfig:
    """Options of ``pool``.

    Args:
        grid: (rows, cols) that the patch tokens of every view are averaged to.
    """

    grid: Grid

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", as_grid(self.grid, "grid"))


@dataclass(frozen=True)
class RmsScaleConfig:
    """Options of ``rms-scale``.

    Args:
        gain: Root mean square of the tokens at the start of training; learned from there. Best
            set to the magnitude of the language model's own embeddings.
        eps: Added to the mean square before the root.
    """

    gain: float = 1.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.gain > 0 or not self.eps > 0:
            raise ValueError(f"gain and eps must be positive, got {self.gain} and {self.eps}")


@dataclass(frozen=True)
class FreeTokensConfig:
    """Options of ``free-tokens``.

    Args:
        count: Learned tokens per view.
    """

    count: int = 6

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


@dataclass(frozen=True)
class PlainConfig:
    """``plain`` has no options."""


@dataclass(frozen=True)
class AnyResUnpadConfig:
    """``anyres-unpad`` has no options: padding is cut by the original's aspect ratio."""


def as_grid(value: Sequence[int], field: str) -> Grid:
    """Read a (rows, cols) pair from plain data.

    Raises:
        ValueError: Not two positive integers.
    """
    pair = tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"{field} must be [rows, cols] with positive integers, got {value!r}")
    return pair[0], pair[1]
