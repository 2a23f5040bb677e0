"""Visual tokens of pictures seen before, as many as fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from vistoken.core.tables import TOKEN
from vistoken.models.outputs import ImageFeatures


class FeatureCache:
    """Least recently used first out; bounded in bytes. Belongs to one thread.

    Args:
        max_bytes: Memory for all of them; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = self.hits = self.misses = 0
        self._known: OrderedDict[str, tuple[ImageFeatures, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> ImageFeatures | None:
        """The visual tokens of a picture, if they are known."""
        found = self._known.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._known.move_to_end(key)
        return found[0]

    def put(self, key: str, features: ImageFeatures) -> None:
        """Remember a picture's visual tokens, forgetting the longest unused."""
        size = stored_bytes([features.pooler_output, features.token_map, features.side])
        if size > self.max_bytes:
            return
        if key in self._known:
            self.bytes -= self._known.pop(key)[1]
        self._known[key] = (features, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, (_, gone) = self._known.popitem(last=False)
            self.bytes -= gone


def side_by_side(pictures: Iterable[ImageFeatures]) -> ImageFeatures:
    """Pictures of one prompt, in order, out of one-picture outputs."""
    shown = list(pictures)
    maps = [TOKEN.set(m, media=n) for n, one in enumerate(shown) for m in one.token_map or []]
    return ImageFeatures(
        pooler_output=[rows for one in shown for rows in one.pooler_output],
        token_map=maps or None,
        side={
            name: [value for one in shown for value in (one.side or {})[name]]
            for name in shown[0].side or {}
        },
    )


def stored_bytes(value: Any) -> int:
    """Bytes of all tensors in nested lists and dictionaries; a view counts as what it shows."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(stored_bytes(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(stored_bytes(item) for item in value)
    return 0
