"""Options of ``msac``, ``pixel-shuffle`` and ``scm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Adaptive = Literal["any", "all", "none"]
Order = Literal["detailed", "adaptive"]
Version = Literal["v1", "v2"]
Compat = Literal["official", "fixed"]


@dataclass(frozen=True)
class MsacConfig:
    """Options of ``msac``; the defaults are those of the released demo and evaluation.

    Args:
        min_detailed: Fewest tiles of the detailed grid.
        max_detailed: Most tiles of it.
        min_adaptive: Fewest tiles of the adaptive grid.
        max_adaptive: Most tiles of it.
        adaptive: Which grids may be the adaptive one: those whose columns or rows do not divide
            the detailed grid's (``any``), those where neither does (``all``, the released
            training), or no second tiling (``none``, the dynamic tiling of InternVL2).
        order: Which tiling comes first; the undivided picture is always last. ``adaptive`` is the
            order of the released demo.
        no_upscale: Leave out grids with more columns or rows of tiles than the picture fills.
    """

    min_detailed: int = 4
    max_detailed: int = 12
    min_adaptive: int = 3
    max_adaptive: int = 7
    adaptive: Adaptive = "any"
    order: Order = "detailed"
    no_upscale: bool = False

    def __post_init__(self) -> None:
        for name in ("detailed", "adaptive"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            _check_count(f"min_{name}", least)
            _check_count(f"max_{name}", most)
            if least > most:
                raise ValueError(
                    f"min_{name} {least} is more than max_{name} {most}; no grid has so many tiles"
                )
        _check_choice("adaptive", self.adaptive, get_args(Adaptive))
        _check_choice("order", self.order, get_args(Order))


@dataclass(frozen=True)
class PixelShuffleConfig:
    """Options of ``pixel-shuffle``.

    Args:
        factor: A token stands for ``factor`` times ``factor`` cells of the feature grid.
        version: Order of the tokens: ``v2`` row by row, ``v1`` column by column.
        hidden_width: Width between the two linear layers; None takes the decoder's hidden size.
    """

    factor: int = 2
    version: Version = "v2"
    hidden_width: int | None = None

    def __post_init__(self) -> None:
        _check_count("factor", self.factor)
        _check_choice("version", self.version, get_args(Version))
        if self.hidden_width is not None:
            _check_count("hidden_width", self.hidden_width)


@dataclass(frozen=True)
class ScmConfig:
    """Options of ``scm``.

    Args:
        ratio: Share of the detailed tokens that is kept, rounded down; 1 keeps all, 0 none.
        layer: Layer whose attention decides; the layers before it are run once more than needed.
        group: Tiling whose tokens are compressed, by its number in the view table: 1 are the
            detailed tiles of ``msac``, and the tiles of other view functions.
        exclude_other_detailed: Detailed tokens of later pictures do not ask for those of earlier
            ones.
        compat: ``official`` loses the first token behind the detailed ones, as the released code
            does; ``fixed`` keeps it.
    """

    ratio: float = 0.5
    layer: int = 1
    group: int = 1
    exclude_other_detailed: bool = False
    compat: Compat = "fixed"

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must be between 0 and 1, got {self.ratio!r}")
        for name in ("layer", "group"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
        _check_choice("compat", self.compat, get_args(Compat))


def _check_count(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field} must be a whole number of at least 1, got {value!r}")


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}, got {value!r}")
