"""All rows of a step in one call of the model, keys and values in slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vistoken.models.outputs import ImageFeatures
from vistoken.models.scatter import scatter_rows
from vistoken.serve.engine.decoders import Prefilled, Reading, Seat
from vistoken.serve.engine.prepare import Prompt
from vistoken.serve.engine.slots import SlotCache

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration


class SharedDecoder:
    """All rows in one call, keys and values in slots.

    Args:
        model: A model without mechanisms.
        max_rows: Most answers at a time.
        chunk: Prompt tokens read in one call.
        places: Tokens of key/value memory, rows times the longest of them.
    """

    def __init__(
        self, model: VistokenForConditionalGeneration, max_rows: int, chunk: int, places: int
    ) -> None:
        self._model, self._chunk = model, chunk
        core: Any = model.model
        self._core = core
        config = core.language_model.config
        self._additive = config._attn_implementation == "eager"
        self._cache = SlotCache(config.num_hidden_layers, max_rows, places)
        self._seats: list[Seat] = []

    def read(self, prompt: Prompt, features: ImageFeatures | None) -> Reading:
        """Read a prompt piece by piece, as ``generate`` reads it alone."""
        ids = prompt.ids.to(self._model.device)
        embeds = self._core.get_input_embeddings()(ids)
        if features is not None:
            embeds = scatter_rows(ids == self._model.config.image_token_id, embeds, features)
        cache = DynamicCache(config=self._core.language_model.config)
        for start in range(0, prompt.length, self._chunk):
            if start:
                yield
            piece = embeds[:, start : start + self._chunk]
            outputs = self._model(
                inputs_embeds=piece,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return Prefilled(outputs.logits[:, -1], cache, prompt)

    def sit(self, read: Prefilled, token: int) -> Seat:
        """Copy a prompt's keys and values into the next slot."""
        seat = Seat(token, read.prompt.length, slot=len(self._seats))
        if not isinstance(read.cache, DynamicCache):
            raise TypeError("a prompt was read into a foreign cache")
        longest = max(each.length for each in [*self._seats, seat]) + 1
        self._cache.join(seat.slot, read.cache, longest)
        self._seats.append(seat)
        return seat

    def step(self, seats: Sequence[Seat]) -> Tensor:
        """One call for all seats, which must lie side by side."""
        ordered = sorted(seats, key=lambda seat: seat.slot)
        device = self._model.device
        lengths = torch.tensor([seat.length for seat in ordered])
        allowed = self._cache.open_step(len(self._seats), ordered[0].slot, lengths)[:, None, None]
        outputs = self._model(
            input_ids=torch.tensor([[seat.token] for seat in ordered], device=device),
            attention_mask=self._as_mask(allowed),
            position_ids=lengths[:, None].to(device),
            past_key_values=self._cache,
            use_cache=True,
        )
        place = {seat.slot: number for number, seat in enumerate(ordered)}
        logits: Tensor = outputs.logits[:, -1]
        return logits[[place[seat.slot] for seat in seats]]

    def advance(self, seats: Sequence[Seat]) -> None:
        """Count the tokens of a step that succeeded."""
        for seat in seats:
            seat.length += 1

    def leave(self, seat: Seat) -> None:
        """Free a slot; the last row moves into it, so that rows stay side by side."""
        last = self._seats.pop()
        if last is not seat:
            self._cache.move(last.slot, seat.slot, last.length)
            self._seats[seat.slot] = last
            last.slot = seat.slot
        if not self._seats:
            self._cache.free()

    def stored_bytes(self) -> int:
        """Bytes of the slots."""
        return self._cache.stored_bytes()

    def _as_mask(self, allowed: Tensor) -> Tensor:
        if not self._additive:
            return allowed
        dtype = self._model.dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
