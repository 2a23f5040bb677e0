"""Running a model for many answers: what every way of doing it has, and which way a model needs.

Rows share a call where the stock language model does all the work. Decoder mechanisms and sliding
windows keep per-sequence state that other rows would disturb, so there every row keeps a cache of
its own and is stepped alone; requests still take turns after every token.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from transformers import Cache

from vistoken.models.outputs import ImageFeatures
from vistoken.serve.engine.prepare import Prompt

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
