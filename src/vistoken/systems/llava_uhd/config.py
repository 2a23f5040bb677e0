"""Options of the LLaVA-UHD parts; every class is one part's section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compat = Literal["official", "fixed"]
_COMPAT = ("official", "fixed")
_ATTENTION = ("regions", "all")


@dataclass(frozen=True)
class UhdSlicesConfig:
    """Options of ``uhd-slices``.

    Args:
        max_slices: Most slices of a picture; it decides the highest resolution that is used. 1
            gives the overview alone.
        scale_resolution: Side in pixels of the square whose area a slice has; None takes the area
            that the first tower was trained on.
        encoder_aspect: Width / height that slices should come near to.
        longest_side: Resize every picture so that its longer side has this many pixels before
            slicing (released question answering scores use 1,024); None keeps its own size.
        overview_only: Leave the slices out (alignment); the overview keeps the size that it has
            beside them.
        max_aspect: Pictures with a longer side of more than this many times the shorter one are
            refused.
    """

    max_slices: int = 7
    scale_resolution: int | None = None
    encoder_aspect: float = 1.0
    longest_side: int | None = None
    overview_only: bool = False
    max_aspect: float = 100.0

    def __post_init__(self) -> None:
        for name in ("max_slices", "scale_resolution", "longest_side"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not self.encoder_aspect > 0:
            raise ValueError(f"encoder_aspect must be positive, got {self.encoder_aspect}")
        if not self.max_aspect >= 1:
            raise ValueError(f"max_aspect must be at least 1, got {self.max_aspect}")


@dataclass(frozen=True)
class UhdResamplerConfig:
    """Options of ``uhd-resampler``.

    Args:
        grid: Rows and columns of queries; a view gives ``grid`` squared tokens.
        heads: Attention heads; None takes one per 128 channels of the decoder.
        attention: ``regions``, a query sees samples of its own cell of the view (144 queries of
            the release); ``all``, every query sees every patch (64 queries of the first paper).
        compat: ``official`` samples as the released weights expect: patch i lies at coordinate i,
            half a patch from its centre, and regions under one patch are widened. ``fixed`` puts
            patches at their centres and leaves regions their size.
    """

    grid: int = 12
    heads: int | None = None
    attention: Literal["regions", "all"] = "regions"
    compat: Compat = "fixed"

    def __post_init__(self) -> None:
        for name in ("grid", "heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.attention not in _ATTENTION:
            raise ValueError(f"attention must be one of {_ATTENTION}, got {self.attention!r}")
        if self.compat not in _COMPAT:
            raise ValueError(f"compat must be one of {_COMPAT}, got {self.compat!r}")


@dataclass(frozen=True)
class UhdSchemaConfig:
    """Options of ``uhd-schema``; all are filled in from the tokenizer and the language model.

    Args:
        comma_id: Token id of "," in the language model's table.
        newline_id: Token id of a newline.
        max_tokens: Most visual tokens of one picture: the language model's positions.
    """

    comma_id: int | None = None
    newline_id: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("comma_id", "newline_id"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
