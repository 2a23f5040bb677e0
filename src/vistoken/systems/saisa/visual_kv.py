"""Keys and values of visual tokens, computed once per image and used for any number of prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.models.decoder import ReadyKV

VISUAL_KV = "saisa_visual_kv"
"""Key in the side outputs: per image, its :class:`VisualKV`."""


@dataclass(frozen=True)
class VisualKV:
    """One image's keys and values in every layer, without positions.

    They depend on the image and the weights alone; the rotation is applied where the image stands
    in a prompt. They do not follow later changes of the weights.

    Args:
        keys: For each layer (N, G, E), N features, G key/value heads of size E.
        values: For each layer (N, G, E).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.keys[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def to(self, device: torch.device | str) -> VisualKV:
        """The same on another device; keep rarely used images in main memory."""
        return VisualKV(
            tuple(t.to(device) for t in self.keys), tuple(t.to(device) for t in self.values)
        )


def ready(images: list[VisualKV], layer: int, slots: Tensor | None, like: Tensor) -> ReadyKV:
    """One layer's keys and values of all images of a batch, in TokenMap order.

    Args:
        images: In order of appearance.
        layer: Number of the layer.
        slots (Tensor | None): (N,) int64, which of them are wanted; None for all.
        like: Gives type and device.

    Raises:
        UsageError: They were computed with a model of fewer layers.
    """
    if any(layer >= len(image.keys) for image in images):
        raise UsageError(
            f"the precomputed visual keys and values have {len(images[0].keys)} layers and layer "
            f"{layer} needs them; compute them with this model"
        )
    keys = torch.cat([image.keys[layer].to(like) for image in images])
    values = torch.cat([image.values[layer].to(like) for image in images])
    return ReadyKV(keys, values) if slots is None else ReadyKV(keys[slots], values[slots])
