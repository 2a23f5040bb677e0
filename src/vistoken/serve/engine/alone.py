"""Every row in calls of its own, with the cache that the model's mechanisms ask for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from vistoken.models.decoder import make_cache
from vistoken.models.outputs import ImageFeatures
from vistoken.models.scatter import answer_rows
from vistoken.serve.engine.decoders import Prefilled, Reading, Seat
from vistoken.serve.engine.prepare import Prompt

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration


class AloneDecoder:
    """Every row in calls of its own, with the cache that the model's mechanisms ask for.

    Args:
        model: Any model.
    """

    def __init__(self, model: VistokenForConditionalGeneration) -> None:
        self._model = model
        self._seats: list[Seat] = []

    def read(self, prompt: Prompt, features: ImageFeatures | None) -> Reading:
        """Read a prompt in one call: mechanisms look at all of it."""
        yield from ()
        core: Any = self._model.model
        cache = make_cache(core.language_model.config, core.stack)
        ids = prompt.ids.to(self._model.device)
        outputs = self._model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            mm_encoder_outputs=None if features is None else {"image": features},
            text_map=None if prompt.text_map is None else prompt.text_map.to(ids.device),
            use_cache=True,
            logits_to_keep=1,
        )
        return Prefilled(outputs.logits[:, -1], cache, prompt)

    def sit(self, read: Prefilled, token: int) -> Seat:
        """Keep the prompt's cache, or a copy of it for further answers."""
        cache = read.cache
        if any(seat.cache is cache for seat in self._seats):
            cache = copy.deepcopy(cache)
        seat = Seat(token, read.prompt.length, cache=cache, text_map=read.prompt.text_map)
        self._seats.append(seat)
        return seat

    def step(self, seats: Sequence[Seat]) -> Tensor:
        """One call per seat; what was computed before another seat failed is not done again."""
        for seat in seats:
            if seat.logits is None:
                seat.logits = self._step(seat)
        return torch.cat([seat.logits for seat in seats if seat.logits is not None])

    def advance(self, seats: Sequence[Seat]) -> None:
        """Count the tokens of a step that succeeded."""
        for seat in seats:
            seat.length += 1
            seat.logits = None

    def leave(self, seat: Seat) -> None:
        """Forget a row's cache."""
        self._seats.remove(seat)

    def stored_bytes(self) -> int:
        """Bytes of all rows' caches."""
        return sum(_bytes_of(seat.cache) for seat in self._seats if seat.cache is not None)

    def _step(self, seat: Seat) -> Tensor:
        device, text_map = self._model.device, seat.text_map
        if text_map is not None:
            rows = answer_rows(text_map, seat.length + 1)
            text_map = rows[:, seat.length : seat.length + 1].to(device)
        outputs = self._model(
            input_ids=torch.tensor([[seat.token]], device=device),
            attention_mask=torch.ones(1, seat.length + 1, dtype=torch.int64, device=device),
            position_ids=torch.tensor([[seat.length]], device=device),
            past_key_values=seat.cache,
            text_map=text_map,
            use_cache=True,
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits


def _bytes_of(cache: Cache) -> int:
    buffers = [b for layer in cache.layers for b in (layer.keys, layer.values)]
    return sum(b.numel() * b.element_size() for b in buffers if b is not None)
