"""Official YOPO releases: plain LLaVA weights, options in the config, a head mask beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Grid
from vistoken.core.release_keys import ReleaseKeys
from vistoken.systems.yopo.heads import read_head_mask

_OPTIONS = {"attncut_w": "window", "layercut_num": "layer_cut", "mlpcut_ratio": "mlp_ratio"}
_HEADS = "headcut_num"  # heads kept, although it is called a cut


class YopoKeys(ReleaseKeys):
    """Importer of the mechanism ``yopo``; the connector is left to the importer of its weights."""

    part = "mlp"
    mechanism = "yopo"

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Never: such a release has no tensor of its own."""
        return False

    @staticmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """No connector options."""
        return {}

    @staticmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """No names of its own."""
        return {}

    @classmethod
    def configured_options(
        cls, config: Mapping[str, Any], directory: Path
    ) -> dict[str, Any] | None:
        """Options of ``yopo`` in mode exact, if the config has any of them.

        Args:
            config: The release's ``config.json``.
            directory: Where it lies; the head mask, a ``.npy`` array, must lie beside it.

        Raises:
            WeightsError: The config counts heads, and there is no head mask or more than one.
        """
        given = {ours: config[theirs] for theirs, ours in _OPTIONS.items() if theirs in config}
        if not given and not config.get(_HEADS):
            return None
        options = {"mode": "exact", **given}
        if config.get(_HEADS):
            masks = sorted(directory.glob("*.npy"))
            if len(masks) != 1:
                raise WeightsError(
                    f"{directory / 'config.json'} says {_HEADS} {config[_HEADS]} but {directory} "
                    f"holds {len(masks)} .npy files; put the release's head mask there, and no "
                    "other array"
                )
            options["head_keep"] = list(read_head_mask(masks[0]).digits())
        return options
