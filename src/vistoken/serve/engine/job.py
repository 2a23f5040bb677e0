"""A request on its way through the engine."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from vistoken.serve.engine.decoders import Seat
from vistoken.serve.engine.prepare import Prompt
from vistoken.serve.engine.protocol import Deliver, Delta, Done, Event, Failed, Usage
from vistoken.serve.engine.sampling import Chooser
from vistoken.serve.engine.text import TextStream

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Row:
    """One answer that is being written.

    Args:
        job: The request it belongs to.
        choice: Which of its answers.
        seat: Its place in the decoder.
        chooser: Its dice.
        text: Its text so far.
        tokens: Its tokens so far.
    """

    job: Job
    choice: int
    seat: Seat
    chooser: Chooser
    text: TextStream
    tokens: list[int] = field(default_factory=list)


class Job:
    """A request: its prompt, who hears of it, and what it took.

    Args:
        prompt: Ready for the model.
        deliver: Receives every event, in the engine's thread.
        arrived: When it came (``time.perf_counter``).
    """

    def __init__(self, prompt: Prompt, deliver: Deliver, arrived: float) -> None:
        self.prompt, self._deliver, self._arrived = prompt, deliver, arrived
        self.usage = Usage(prompt_tokens=prompt.length, visual_tokens=prompt.visual_tokens)
        self.cancelled = False
        self.open_rows = prompt.sampling.n
        self.finished = False

    @property
    def rows(self) -> int:
        """Answers wanted."""
        return self.prompt.sampling.n

    @property
    def longest(self) -> int:
        """Tokens that each of its rows may come to, prompt included."""
        return self.prompt.length + self.prompt.max_tokens

    def cancel(self) -> None:
        """Give the request up; may be called from any thread, also when it is done."""
        self.cancelled = True

    def taken_up(self) -> None:
        """Note that the engine began with it."""
        self.usage.queue_ms = self._elapsed()

    def say(self, row: Row, text: str, finish: Any, tokens: tuple[int, ...]) -> None:
        """Deliver a piece of an answer."""
        if not self.usage.first_token_ms:
            self.usage.first_token_ms = self._elapsed()
        self.usage.completion_tokens += len(tokens)
        self._tell(Delta(row.choice, text, tokens, finish))

    def done(self) -> None:
        """Deliver that all answers are complete."""
        self.finished = True
        self.usage.total_ms = self._elapsed()
        self._tell(Done(self.usage))

    def fail(self, error: Exception) -> None:
        """Deliver that there will be no answer."""
        if not self.finished:
            self.finished = self.cancelled = True
            self.usage.total_ms = self._elapsed()
            self._tell(Failed(error), even_if_cancelled=True)

    def _elapsed(self) -> float:
        return (time.perf_counter() - self._arrived) * 1e3

    def _tell(self, event: Event, *, even_if_cancelled: bool = False) -> None:
        if self.cancelled and not even_if_cancelled:
            return
        try:
            self._deliver(event)
        except Exception:  # whoever listens may have gone; others must not suffer
            logger.debug("a listener is gone", exc_info=True)
            self.cancelled = True
