"""Recognising LLaVA-SP in an official release and reading its options from the weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from math import gcd
from typing import Any

from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Grid
from vistoken.core.release_keys import ReleaseKeys
from vistoken.systems.llava_sp.config import Variant, default_scales
from vistoken.systems.llava_sp.keys import (
    infer_options,
    infer_variant,
    is_connector_key,
    to_official,
)

_KERNEL = re.compile(r"conv_(\d+)\.(1\.)?weight")
_ATTENTION = ("query_projector.", "key_projector.", "value_projector.")


class LlavaSPKeys(ReleaseKeys):
    """Importer of the connector ``llava-sp`` from an official release."""

    part = "llava-sp"

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether a connector with these official names has spatial kernels."""
        return any(_KERNEL.fullmatch(name) for name in names)

    @staticmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """Options of ``llava-sp`` that fit these weights; the variant is told by their names.

        Args:
            tensors: The connector's tensors by official name, wrappers stripped.
            grid: Feature grid (rows, cols) of a view.

        Raises:
            WeightsError: Names of two variants, a kernel or the patch projector is missing, or the
                kernels belong to another grid.
        """
        known = {name: tensor for name, tensor in tensors.items() if is_connector_key(name)}
        sizes = sorted(int(match[1]) for match in map(_KERNEL.fullmatch, known) if match)
        variant: Variant = "pooling" if infer_variant(known) == "pooling" else "cropping"
        lost = [f"conv_{k}" for k in _lost_kernels(sizes, max(grid), variant)]
        if "mm_projector.0.weight" not in known:
            lost.append("mm_projector.0")
        if lost:
            raise WeightsError(
                f"the release lacks the weights of {', '.join(lost)} "
                f"(it has kernels {', '.join(map(str, sizes))} for a grid of "
                f"{grid[0]}x{grid[1]})"
            )
        options = infer_options(known)
        # part of the attention without its convolution is an incomplete release
        options["detail"] |= any(name.startswith(_ATTENTION) for name in known)
        return options

    @staticmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Our name, relative to the stage -> the official one, for every tensor of the stage."""
        return dict(zip(state, to_official(state, prefix=""), strict=True))


def _lost_kernels(sizes: list[int], side: int, variant: Variant) -> list[int]:
    """Kernel sizes that a release should have and has not; its scales are only in their names.

    Any list up to the grid is a model. But if most of a regular list is there (the default scales,
    or evenly spaced ones), a gap in it is a lost tensor rather than another model.
    """
    if len(set(sizes)) < len(sizes) or sizes[-1] > side:
        raise WeightsError(
            f"the kernels {', '.join(map(str, sizes))} must be different sizes up to the feature "
            f"grid's side {side}; they belong to another vision tower or to two models"
        )
    step = gcd(*sizes, side)
    for regular in (default_scales(side, variant), range(step, side + 1, step)):
        lost = [size for size in regular if size not in sizes]
        if not lost and len(regular) == len(sizes):
            return []
        if len(lost) < len(sizes) and set(sizes) < set(regular):
            return lost
    return [] if sizes[-1] == side else [side]
