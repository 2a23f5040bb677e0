"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture.

    Args:
        image: Upright RGB.
        key: Hash of its content; pictures of the same key are taken for the same.
    """

    image: Image
    key: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is written.

    Args:
        max_tokens: Longest answer; the engine's own default when None.
        temperature: 0 takes the likeliest token, more samples.
        top_p: Sample among the likeliest tokens that together have this probability.
        seed: Of the sampling; random when None. Choice k of a request uses ``seed + k``.
        stop: Texts before which an answer ends.
        n: Answers to the same prompt.
        ignore_eos: Write on to the last token allowed (load tests).
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """A request.

    Args:
        messages: Role and content of each; content is a list of ``{"type": "text", "text": ...}``
            and ``{"type": "image"}`` parts.
        pictures: One for each image part, in order.
        sampling: How to write.
    """

    messages: list[dict[str, Any]]
    pictures: list[Picture] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(slots=True)
class Usage:
    """What a request took; complete once it is done.

    Args:
        prompt_tokens: Tokens of the prompt, visual ones included.
        visual_tokens: Visual tokens of it.
        completion_tokens: Tokens of all its answers.
        cached_pictures: Pictures whose visual tokens were there already.
        prepare_ms: Milliseconds to make the prompt: chat template, tokenizer, picture to pixels.
        queue_ms: Milliseconds until the engine took it up.
        first_token_ms: Milliseconds until its first token.
        total_ms: Milliseconds until its last token.
        engine_ms: Milliseconds of computation that it took part in, its share of batches not
            divided out.
    """

    prompt_tokens: int = 0
    visual_tokens: int = 0
    completion_tokens: int = 0
    cached_pictures: int = 0
    prepare_ms: float = 0.0
    queue_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    engine_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one answer.

    Args:
        choice: Which of the request's answers.
        text: What was added; may be empty.
        tokens: Ids of the tokens written since the last piece.
        finish: Why the answer is complete; None while it goes on.
    """

    choice: int
    text: str
    tokens: tuple[int, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """All answers of a request are complete."""

    usage: Usage


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """A request ended without its answers."""

    error: Exception


Event = Delta | Done | Failed
Deliver = Callable[[Event], None]


class Ticket(Protocol):
    """A request that an engine has taken."""

    usage: Usage

    def cancel(self) -> None:
        """Give it up; nothing is delivered any more."""


class Engine(Protocol):
    """Writes answers. Methods may be called from any thread."""

    name: str

    def describe(self) -> dict[str, Any]:
        """What the model can do, for ``/v1/models``."""

    def submit(self, conversation: Conversation, deliver: Deliver) -> Ticket:
        """Prepare a request (in the calling thread, which may take a while) and queue it.

        Args:
            conversation: The request.
            deliver: Receives every event, in the engine's thread; must not block.

        Raises:
            RequestError: It cannot be answered, or not now.
            VistokenError: The messages or pictures do not fit the model.
        """

    def stats(self) -> dict[str, float]:
        """Numbers for ``/metrics``."""

    def close(self) -> None:
        """Finish what runs, then stop."""
