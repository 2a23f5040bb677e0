"""From a conversation to model inputs, before any weight is touched."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.tables import split_media
from vistoken.serve.engine.protocol import Conversation, Sampling
from vistoken.serve.errors import RequestError, too_long

if TYPE_CHECKING:
    from vistoken.models import VistokenProcessor

# Whole documents are refused before they are tokenised; no tokenizer's average comes near this.
_CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture as the towers take it.

    Args:
        key: Hash of its content.
        pixels: (V, 3, H, W), or V tensors where sizes differ.
        views (Tensor): (V, K) int64.
    """

    key: str
    pixels: Tensor | list[Tensor]
    views: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A request, ready for the model.

    Args:
        ids (Tensor): (1, n) int64, every picture expanded.
        text_map (Tensor | None): (1, n, K) int64, where mechanisms read it.
        pictures: In order.
        visual_tokens: Placeholders among the ids.
        max_tokens: Longest answer.
        sampling: How to write.
    """

    ids: Tensor
    text_map: Tensor | None
    pictures: list[Shown]
    visual_tokens: int
    max_tokens: int
    sampling: Sampling

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.ids.shape[1]


class Preparer:
    """Makes prompts; safe to call from several threads.

    Args:
        processor: The model's own; used by nobody else.
        max_context: Tokens of prompt and answer together.
        default_max_tokens: Longest answer where a request names none.
        with_text_map: Whether mechanisms want to know who said what.

    Raises:
        UsageError: The model has no chat template.
    """

    def __init__(
        self,
        processor: VistokenProcessor,
        max_context: int,
        default_max_tokens: int,
        *,
        with_text_map: bool,
    ) -> None:
        if processor.chat_template is None:
            raise UsageError(
                "this model has no chat template, so it cannot hold a conversation; convert or "
                "save it again with one ('vistoken list templates' names those that there are)"
            )
        self._processor = processor
        self._max_context, self._default = max_context, default_max_tokens
        self._with_text_map = with_text_map
        # tokenizers keep state between calls, and two pictures at a time would be slower anyway
        self._lock = threading.Lock()
        self.cpu_seconds = 0.0

    def __call__(self, conversation: Conversation) -> Prompt:
        """Make a prompt.

        Raises:
            RequestError: It is too long, or the template refuses it.
            VistokenError: The messages or pictures do not fit the model.
        """
        messages = self._messages(conversation)
        try:
            with self._lock, self._counted():
                made = self._processor.apply_chat_template(
                    messages,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                    return_text_map=self._with_text_map,
                )
        except TemplateError as error:
            raise RequestError(
                f"the model's chat template refuses this conversation ({error})", param="messages"
            ) from error
        length = made["input_ids"].shape[1]
        return Prompt(
            ids=made["input_ids"],
            text_map=made.get("text_map"),
            pictures=_shown(made, conversation),
            visual_tokens=int((made["input_ids"] == self._processor.image_token_id).sum()),
            max_tokens=self._max_tokens(length, conversation.sampling),
            sampling=conversation.sampling,
        )

    @contextmanager
    def _counted(self) -> Generator[None]:
        begun = time.thread_time()
        try:
            yield
        finally:
            self.cpu_seconds += time.thread_time() - begun

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The conversation with its pictures in place, texts checked."""
        mark = self._processor.image_token
        pictures = iter(conversation.pictures)
        left = self._max_context * _CHARACTERS_PER_TOKEN
        messages = []
        for message in conversation.messages:
            content = []
            for part in message["content"]:
                if part["type"] == "image":
                    content.append({"type": "image", "image": next(pictures).image})
                    continue
                text = part["text"]
                left -= len(text)
                if mark in text:
                    raise RequestError(
                        f"a text holds the image mark {mark}; leave it out, every picture gets "
                        "its place by itself",
                        param="messages",
                    )
                if left < 0:
                    raise too_long(
                        f"the texts are longer than {self._max_context} tokens can be, which is "
                        "all that this model reads; shorten them"
                    )
                content.append({"type": "text", "text": text})
            messages.append({**message, "content": content})
        return messages

    def _max_tokens(self, length: int, sampling: Sampling) -> int:
        room = self._max_context - length
        if room < 1 or (sampling.max_tokens is not None and sampling.max_tokens > room):
            asked = f"{sampling.max_tokens} of answer" if sampling.max_tokens else "an answer"
            raise too_long(
                f"{length} tokens of prompt and {asked} are more than the {self._max_context} that "
                "this model reads; shorten the conversation, show fewer pictures or lower "
                "max_tokens"
            )
        return min(self._default, room) if sampling.max_tokens is None else sampling.max_tokens


def _shown(made: Any, conversation: Conversation) -> list[Shown]:
    """Pixels and views of each picture of a prompt."""
    if not conversation.pictures:
        return []
    pixels, shown, start = made["pixel_values"], [], 0
    tables = split_media(made["view_table"])
    for picture, views in zip(conversation.pictures, tables, strict=True):
        stop = start + len(views)
        own = pixels[start:stop]
        shown.append(Shown(picture.key, own.clone() if isinstance(own, Tensor) else own, views))
        start = stop
    return shown
