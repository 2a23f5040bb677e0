"""How official LLaVA-UHD releases (branch v1) name the resampler."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Grid
from vistoken.core.release_keys import ReleaseKeys

_STEM = "mm_projector."
_OWN = frozenset({"query", "pos_embed", "attn.in_proj_weight", "ln_q.weight", "proj"})
_PERCEIVER_GRID = 8
_MAX_SLICES = 7


class UhdKeys(ReleaseKeys):
    """Importer of ``uhd-resampler`` from an official release; the names are the same."""

    part = "uhd-resampler"

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether a connector with these official names is a resampler and nothing more."""
        return {_STEM + name for name in _OWN} <= set(names) and all(
            name.startswith(_STEM) for name in names
        )

    @staticmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """Options of ``uhd-resampler`` that fit these weights.

        The weights do not say how queries attend: 64 queries are those of the first paper, which
        see every patch; any other number has regions.

        Raises:
            WeightsError: The queries form no square.
        """
        queries = len(tensors[f"{_STEM}query"])
        side = math.isqrt(queries)
        if side * side != queries:
            raise WeightsError(f"the release's {queries} queries form no square grid")
        attention = "all" if side == _PERCEIVER_GRID else "regions"
        return {"grid": side, "attention": attention, "compat": "official"}

    @staticmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Our name, relative to the stage -> the official one, for every tensor of the stage."""
        return {name: _STEM + name for name in state}

    @classmethod
    def views(cls, views: dict[str, Any]) -> dict[str, Any]:
        """Slices, whatever the release's config calls its pictures; its limit is 7 of them."""
        return {"part": "uhd-slices", "options": {"max_slices": _MAX_SLICES}}

    @classmethod
    def layout(cls, layout: dict[str, Any]) -> dict[str, Any]:
        """The schema of separators; its ids come from the release's tokenizer."""
        return {"part": "uhd-schema", "options": {}}
