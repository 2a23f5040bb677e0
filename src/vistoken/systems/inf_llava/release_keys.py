"""How official INF-LLaVA releases name the parameters of ``inf-dem`` and the ``mlp`` behind it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Grid
from vistoken.core.release_keys import ReleaseKeys

_STEM = "spatial_embed."
OFFICIAL_KEYS: dict[str, str] = {
    "inf-dem.enhancement.attention.query.": "spatial_embed.attention.linears.0.",
    "inf-dem.enhancement.attention.key.": "spatial_embed.attention.linears.1.",
    "inf-dem.enhancement.attention.value.": "spatial_embed.attention.linears.2.",
    "inf-dem.enhancement.attention.output.": "spatial_embed.attention.linears.3.",
    "inf-dem.enhancement.attention.norm.": "spatial_embed.attention.ln.",
    "inf-dem.enhancement.crop_ffn.": "spatial_embed.ffn_crop.",
    "inf-dem.enhancement.stride_ffn.": "spatial_embed.ffn_stride.",
    "inf-dem.enhancement.norm.": "spatial_embed.ln_fuse.",
    "mlp.linear_1.": "mm_projector.0.",
    "mlp.linear_2.": "mm_projector.2.",
}
"""Our stem, relative to the connector -> the official one."""

RELEASED_SIDE = 3
"""Grid side n of every release; their weights do not tell it."""


class InfLlavaKeys(ReleaseKeys):
    """Importer of the connector ``inf-dem`` -> ``mlp`` from an official release."""

    part = "inf-dem"

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether these are the projector's and ``spatial_embed``'s names."""
        return any(name.startswith(_STEM) for name in names) and all(
            name.startswith((_STEM, "mm_projector.")) for name in names
        )

    @staticmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """Releases have the default options of ``inf-dem``.

        Raises:
            WeightsError: The projector is missing.
        """
        if "mm_projector.0.weight" not in tensors:
            raise WeightsError("the release lacks mm_projector.0.weight; it is incomplete")
        return {}

    @classmethod
    def chain(
        cls, options: dict[str, Any], tensors: Mapping[str, Tensor]
    ) -> list[dict[str, Any] | str]:
        """The enhancement, then the projector."""
        hidden = tensors["mm_projector.0.weight"].shape[0]
        return [
            {"part": cls.part, "options": options},
            {"part": "mlp", "options": {"hidden_width": hidden}},
        ]

    @classmethod
    def views(cls, views: dict[str, Any]) -> dict[str, Any]:
        """The cropping, around what the release's config names.

        Releases were trained on pictures of n times the tower's size; that their evaluation
        enlarges small ones is a fault of its loader, so ``compat`` stays ``fixed``.

        Raises:
            WeightsError: The config names tiles, which the cropping replaces.
        """
        if views["part"] not in ("pad", "square"):
            raise WeightsError(
                f"the release's image_aspect_ratio asks for {views['part']}, which cannot be "
                "combined with the dual-perspective cropping of its weights; pad or square can"
            )
        return {"part": "inf-dcm", "options": {"n": RELEASED_SIDE, "fit": views["part"]}}

    @staticmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Our name, relative to the connector -> the official one."""
        names: dict[str, str] = {}
        for name in state:
            stem = next((stem for stem in OFFICIAL_KEYS if name.startswith(stem)), None)
            if stem is None:
                raise WeightsError(
                    f"{name!r} has no name in the official code; releases have shared attention"
                )
            names[name] = OFFICIAL_KEYS[stem] + name.removeprefix(stem)
        return names
