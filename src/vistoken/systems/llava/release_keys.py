"""How official LLaVA-1.5 releases name the parameters of ``mlp``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Grid
from vistoken.core.release_keys import ReleaseKeys

_STEM = "mm_projector."
_HOUSE = {"0": "linear_1", "2": "linear_2"}


class LlavaKeys(ReleaseKeys):
    """Importer of the connector ``mlp`` from an official release."""

    part = "mlp"
    variant = "mlp"

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether a connector with these official names is an MLP and nothing more."""
        resampler = f"{_STEM}query" in names  # of other releases, under the same stem
        return bool(names) and not resampler and all(name.startswith(_STEM) for name in names)

    @staticmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """Options of ``mlp`` that fit these weights.

        Args:
            tensors: The connector's tensors by official name, wrappers stripped.
            grid: Feature grid of a view.

        Raises:
            WeightsError: The projector is not ``mlp2x_gelu``.
        """
        layers = {name.removeprefix(_STEM).rpartition(".")[0] for name in tensors}
        if not layers <= set(_HOUSE):
            raise WeightsError(
                f"the release's projector has {', '.join(sorted(tensors))} where mlp2x_gelu has "
                "layers 0 and 2; no other projector can be converted"
            )
        weight = tensors.get(f"{_STEM}0.weight")
        return {} if weight is None else {"hidden_width": weight.shape[0]}

    @staticmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Our name, relative to the stage -> the official one, for every tensor of the stage."""
        inverse = {ours: f"{_STEM}{layer}" for layer, ours in _HOUSE.items()}
        return {name: f"{inverse[name.split('.')[0]]}.{name.split('.')[1]}" for name in state}
