"""How InternVL2 releases, on which Mini-Monkey builds, name their parameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Grid
from vistoken.core.release_keys import ReleaseKeys
from vistoken.systems.mini_monkey.release import OFFICIAL_KEYS, MiniMonkeyRelease


class MiniMonkeyKeys(ReleaseKeys):
    """Importer of ``pixel-shuffle`` from an InternVL2 release, and of whole releases."""

    part = "pixel-shuffle"
    whole = MiniMonkeyRelease

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether these are the connector's names, and nothing else."""
        return bool(names) and all(name.startswith("mlp1.") for name in names)

    @staticmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """Options of ``pixel-shuffle`` that fit; releases put 2 x 2 cells into a token.

        Raises:
            WeightsError: A tensor is missing, or the widths belong to another connector.
        """
        wanted = {
            f"{name}.{kind}" for name in OFFICIAL_KEYS.values() for kind in ("weight", "bias")
        }
        wrong = sorted(wanted.symmetric_difference(tensors))
        if wrong:
            state = "is missing" if wrong[0] in wanted else "has no place in pixel-shuffle"
            raise WeightsError(f"{wrong[0]} {state}")
        width = tensors["mlp1.0.weight"].shape[0]
        if width % 4 or tensors["mlp1.1.weight"].shape[1] != width:
            raise WeightsError(
                f"mlp1 reads {tuple(tensors['mlp1.1.weight'].shape)} from a norm of {width} "
                "channels, which are not those of 2 x 2 cells"
            )
        return {"factor": 2, "hidden_width": tensors["mlp1.1.weight"].shape[0]}

    @staticmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Official names of norm and linear layers."""
        return {
            name: f"{OFFICIAL_KEYS[name.rsplit('.', 1)[0]]}.{name.rsplit('.', 1)[1]}"
            for name in state
        }
