"""Putting a conversation to an engine and hearing its answer, with or without an event loop."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Iterator

from vistoken.serve.engine.protocol import (
    Conversation,
    Delta,
    Done,
    Engine,
    Event,
    Failed,
    Ticket,
    Usage,
)
from vistoken.serve.errors import RequestError


def ask(engine: Engine, conversation: Conversation) -> Iterator[Delta | Done]:
    """Ask and iterate over the answer as it comes; for threads.

    Args:
        engine: Writes the answer.
        conversation: The request.

    Yields:
        Pieces of the answer, then ``Done`` with what it took. Leaving the loop early gives the
        request up.

    Raises:
        RequestError: It cannot be answered, or not now.
        VistokenError: The messages or pictures do not fit the model.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ticket = engine.submit(conversation, events.put)
    try:
        while True:
            event = events.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Done):
                return
    finally:
        ticket.cancel()


class Listening:
    """A request whose events arrive in an event loop.

    Args:
        loop: The loop in which they are read.
        whole: Whether nobody looks at the answer before it is complete; the loop is then woken
            once, not at every token.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, whole: bool = False) -> None:
        self._loop, self._whole = loop, whole
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self._ticket: Ticket | None = None
        self._given_up = False

    @property
    def usage(self) -> Usage:
        """What it has taken so far."""
        return Usage() if self._ticket is None else self._ticket.usage

    def put(self, engine: Engine, conversation: Conversation) -> None:
        """Submit the request; blocks, so call it in a thread.

        Raises:
            RequestError: It cannot be answered, or not now.
            VistokenError: The messages or pictures do not fit the model.
        """
        if not self._given_up:
            self._ticket = engine.submit(conversation, self._deliver)
        if self._given_up and self._ticket is not None:  # the client left while we prepared
            self._ticket.cancel()

    def cancel(self) -> None:
        """Give the request up."""
        self._given_up = True
        if self._ticket is not None:
            self._ticket.cancel()

    async def events(self, deadline: float, silence_s: float) -> AsyncIterator[Delta | Done | None]:
        """Iterate over the answer.

        Args:
            deadline: Time of the loop by which it must be complete.
            silence_s: Yield None after so many seconds without an event.

        Raises:
            RequestError: The deadline has passed.
        """
        while True:
            left = deadline - self._loop.time()
            if left <= 0:
                self.cancel()
                raise RequestError(
                    "the answer took longer than this server allows; ask for fewer tokens, or try "
                    "again when it is less busy",
                    504,
                    "timeout",
                )
            if not self._events:
                # an event that comes from here on sets it again in a later turn of the loop
                self._news.clear()
                try:
                    async with asyncio.timeout(min(left, silence_s)):
                        await self._news.wait()
                except TimeoutError:
                    yield None
                continue
            event = self._events.popleft()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Done):
                return

    def _deliver(self, event: Event) -> None:
        self._events.append(event)
        if not (self._whole and isinstance(event, Delta)):
            self._loop.call_soon_threadsafe(self._news.set)
