"""How official SAISA releases name the projectors, of every layer and of the input.

Such a release calls itself a LLaVA; only the projectors inside the layers tell it apart. Its input
projector is that of LLaVA; nothing it gives reaches an output, it is kept as part of the release.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Grid
from vistoken.core.release_keys import ReleaseKeys

_PER_LAYER = re.compile(r"layers\.(\d+)\.mm_projector\.([02])\.(weight|bias)")
_INPUT = re.compile(r"mm_projector\.([02])\.(weight|bias)")
_HOUSE = {"0": "linear_1", "2": "linear_2"}
_OFFICIAL = {ours: theirs for theirs, ours in _HOUSE.items()}


class SaisaKeys(ReleaseKeys):
    """Importer of ``mlp`` and the mechanism ``saisa`` from an official release."""

    part = "mlp"
    mechanism = "saisa"

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether there are projectors inside the layers, and none but them and the input's."""
        return any(map(_PER_LAYER.fullmatch, names)) and all(
            _PER_LAYER.fullmatch(name) or _INPUT.fullmatch(name) for name in names
        )

    @staticmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """Options of ``mlp`` that fit the input projector."""
        weight = tensors.get("mm_projector.0.weight")
        return {} if weight is None else {"hidden_width": weight.shape[0]}

    @staticmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Names of the input projector."""
        return {name: f"mm_projector.{_layer_name(name)}" for name in state}

    @classmethod
    def mechanism_options(cls, tensors: Mapping[str, Tensor], layers: int) -> dict[str, Any]:
        """One projector per layer.

        Raises:
            WeightsError: The release has projectors for other layers than its language model's.
        """
        found = {int(match[1]) for match in map(_PER_LAYER.fullmatch, tensors) if match}
        wrong = sorted(found.symmetric_difference(range(layers)))
        if wrong:
            state = "lacks" if wrong[0] < layers else "has too many:"
            raise WeightsError(
                f"the release has projectors inside {len(found)} layers and its language model "
                f"has {layers} layers; it {state} layers.{wrong[0]}.mm_projector"
            )
        return {"projector_sharing": "independent"}

    @staticmethod
    def mechanism_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Names of the projectors inside the layers."""
        names = {}
        for name in state:
            _, layer, rest = name.split(".", 2)
            names[name] = f"layers.{layer}.mm_projector.{_layer_name(rest)}"
        return names


def _layer_name(name: str) -> str:
    linear, kind = name.split(".")
    return f"{_OFFICIAL[linear]}.{kind}"
