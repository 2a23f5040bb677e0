"""Keys and values of a running batch: a row per answer, each as long as its own sequence.

Every row starts at place 0 and grows on its own, so a prompt joins by being copied in and leaves
by being forgotten; nobody is padded or shifted. S slots, G key/value heads, C places, E head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """One layer's buffers, (S, G, C, E), written at one place per row."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.rows: slice = slice(0, 0)
        self.places: Tensor = torch.empty(0, dtype=torch.int64)
        self.longest = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers are made by :meth:`reserve` alone."""
        raise RuntimeError("a slot is filled before it is written to")

    def reserve(self, slots: int, places: int, like: tuple[Tensor, Tensor]) -> None:
        """Make room, keeping what is there.

        Args:
            slots: Rows wanted.
            places: Tokens per row wanted.
            like: Keys and values (1, G, n, E) whose shape and type the buffers take.
        """
        self.keys = _grown(self.keys, slots, places, like[0])
        self.values = _grown(self.values, slots, places, like[1])
        self.is_initialized = True

    def fill(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """Copy a prompt's keys and values (1, G, n, E) into a slot."""
        mine, yours = self._buffers()
        mine[slot, :, : keys.shape[2]] = keys[0]
        yours[slot, :, : values.shape[2]] = values[0]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one slot into another."""
        for buffer in self._buffers():
            buffer[target, :, :length] = buffer[source, :, :length]

    def free(self) -> None:
        """Give the memory back."""
        self.keys = self.values = None
        self.is_initialized = False

    def stored_bytes(self) -> int:
        """Bytes of both buffers."""
        return sum(b.numel() * b.element_size() for b in (self.keys, self.values) if b is not None)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one token per row of the step and return what its rows attend to.

        Args:
            key_states (Tensor): (B, G, 1, E).
            value_states (Tensor): (B, G, 1, E).
            *args: Of other caches.
            **kwargs: Of other caches.

        Returns:
            Keys and values (B, G, longest, E); a row's places behind its own are to be masked.
        """
        keys, values = self._buffers()
        keys, values = keys[self.rows], values[self.rows]
        batch = torch.arange(keys.shape[0], device=keys.device)
        keys[batch, :, self.places] = key_states[:, :, 0]
        values[batch, :, self.places] = value_states[:, :, 0]
        return keys[:, :, : self.longest], values[:, :, : self.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the step attends to, and their offset."""
        return self.longest, 0

    def get_seq_length(self) -> int:
        """Tokens of the longest row, that of the step not counted."""
        return max(0, self.longest - 1)

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1

    def _buffers(self) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            raise RuntimeError("a slot is filled before it is written to")
        return self.keys, self.values


class SlotCache(Cache):
    """The layers' slots, and which rows the next step is about.

    Args:
        layers: Number of decoder layers.
        max_slots: Most rows at a time.
        capacity: Most slots times places.
    """

    def __init__(self, layers: int, max_slots: int, capacity: int) -> None:
        self._own = [SlotLayer() for _ in range(layers)]
        super().__init__(layers=list(self._own))
        self._max_slots, self._capacity = max_slots, capacity
        self._slots = self._places = 0

    def join(self, slot: int, prompt: DynamicCache, longest: int) -> None:
        """Copy a prompt's cache (batch of one) into the slot behind the others.

        Args:
            slot: Number of the rows that are there.
            prompt: Its keys and values.
            longest: Tokens of the longest of all rows, this one included.
        """
        self._reserve(slot + 1, longest, prompt)
        for mine, theirs in zip(self._own, prompt.layers, strict=True):
            mine.fill(slot, theirs.keys, theirs.values)

    def move(self, source: int, target: int, length: int) -> None:
        """Put the row of one slot into another."""
        for layer in self._own:
            layer.move(source, target, length)

    def open_step(self, rows: int, first: int, lengths: Tensor) -> Tensor:
        """Say which rows the next call writes, and make room for their tokens.

        Args:
            rows: Number of all rows.
            first: Slot of the first row of the call; the others follow it.
            lengths (Tensor): (B,) int64, tokens that each row of the call holds already.

        Returns:
            (B, longest) bool, the keys that each row may attend to, its new one included.
        """
        longest = int(lengths.max()) + 1
        self._reserve(rows, longest, None)
        places = lengths.to(self._device())
        for layer in self._own:
            layer.rows = slice(first, first + len(lengths))
            layer.places, layer.longest = places, longest
        return torch.arange(longest, device=places.device) <= places[:, None]

    def free(self) -> None:
        """Give all memory back."""
        for layer in self._own:
            layer.free()
        self._slots = self._places = 0

    def stored_bytes(self) -> int:
        """Bytes that the buffers take."""
        return sum(layer.stored_bytes() for layer in self._own)

    def _device(self) -> torch.device:
        keys, _ = self._own[0]._buffers()
        return keys.device

    def _reserve(self, rows: int, places: int, prompt: DynamicCache | None) -> None:
        if rows <= self._slots and places <= self._places:
            return
        slots, length = self._slots, self._places
        if rows > slots:  # some more than asked for: copies stay few
            slots = min(self._max_slots, 2 * rows)
        if places > length:
            length = places + max(64, places // 4)
        if slots * length > self._capacity:
            slots, length = rows, max(places, min(length, self._capacity // rows))
        self._slots, self._places = slots, length
        for number, layer in enumerate(self._own):
            theirs = layer if prompt is None else prompt.layers[number]
            like = (theirs.keys, theirs.values)
            if like[0] is None or like[1] is None:
                raise RuntimeError("an empty cache has no shape to take")
            layer.reserve(self._slots, self._places, (like[0], like[1]))


def _grown(buffer: Tensor | None, slots: int, places: int, like: Tensor) -> Tensor:
    # zeros, not whatever lay there: a masked key that is not a number would spoil the softmax
    made = like.new_zeros(slots, like.shape[1], places, like.shape[3])
    if buffer is not None:
        kept = buffer[:slots, :, :places]
        made[: kept.shape[0], :, : kept.shape[2]] = kept
    return made
