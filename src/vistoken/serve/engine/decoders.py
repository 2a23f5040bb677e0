"""Running a model for many answers: all rows in one call, or each row in a call of its own.

Rows share a call where the stock language model does all the work. Decoder mechanisms and sliding
windows keep per-sequence state that other rows would disturb, so there every row keeps a cache of
its own and is stepped alone; requests still take turns after every token.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from vistoken.models.decoder import make_cache
from vistoken.models.outputs import ImageFeatures
from vistoken.models.scatter import answer_rows, scatter_rows
from vistoken.serve.engine.prepare import Prompt
from vistoken.serve.engine.slots import SlotCache

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration


@dataclass(slots=True, eq=False)
class Prefilled:
    """A prompt that was read.

    Args:
        logits (Tensor): (1, V) behind its last token.
        cache: Its keys and values.
        prompt: The prompt.
    """

    logits: Tensor
    cache: Cache
    prompt: Prompt


@dataclass(slots=True, eq=False)
class Seat:
    """One answer's place in a decoder.

    Args:
        token: The token to be read next.
        length: Tokens read so far.
        slot: Row of the shared cache.
        cache: Own cache, where rows are stepped alone.
        text_map (Tensor | None): (1, n, K) of the prompt, where mechanisms read it.
        logits (Tensor | None): (1, V) of a step that was computed but not counted yet.
    """

    token: int
    length: int
    slot: int = 0
    cache: Cache | None = None
    text_map: Tensor | None = None
    logits: Tensor | None = None


Reading = Generator[None, None, Prefilled]


class Decoder(Protocol):
    """Reads prompts and steps answers."""

    def read(self, prompt: Prompt, features: ImageFeatures | None) -> Reading:
        """Read a prompt; pauses between pieces of it."""

    def sit(self, read: Prefilled, token: int) -> Seat:
        """Make place for an answer that begins with a token."""

    def step(self, seats: Sequence[Seat]) -> Tensor:
        """Read every seat's token; logits (B, V) of what follows. Repeatable if it fails."""

    def advance(self, seats: Sequence[Seat]) -> None:
        """Count the tokens of a step that succeeded."""

    def leave(self, seat: Seat) -> None:
        """Free an answer's place."""

    def stored_bytes(self) -> int:
        """Bytes of keys and values."""


def why_alone(model: VistokenForConditionalGeneration) -> str | None:
    """Why rows of this model cannot share a call; None where they can."""
    core: Any = model.model
    if len(core.stack):
        names = ", ".join(mechanism.name for mechanism in core.stack)
        return f"the decoder mechanism {names} keeps state of its own for every sequence"
    text: Any = core.language_model.config
    values = text.to_dict()
    patterns = set(values.get("layer_types") or ["full_attention"])
    if patterns != {"full_attention"} or (
        values.get("sliding_window") and values.get("use_sliding_window", True)
    ):
        return "the language model attends through a sliding window"
    if text._attn_implementation not in ("sdpa", "eager"):
        return f"attention {text._attn_implementation!r} takes no mask per row"
    return None


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
            cache = _copied(cache)
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


def _copied(cache: Cache) -> Cache:
    import copy

    return copy.deepcopy(cache)


def _bytes_of(cache: Cache) -> int:
    buffers = [b for layer in cache.layers for b in (layer.keys, layer.values)]
    return sum(b.numel() * b.element_size() for b in buffers if b is not None)
