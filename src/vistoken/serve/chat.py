"""`POST /v1/chat/completions`: from a request to an answer, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request
from fastapi.sse import format_sse_event
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vistoken.core.errors import VistokenError
from vistoken.serve.asking import Listening
from vistoken.serve.completion import Completion
from vistoken.serve.engine.protocol import Conversation, Delta, Done, Engine
from vistoken.serve.errors import CLIENT_LEFT, RequestError
from vistoken.serve.messages import Asked, read_request
from vistoken.serve.metrics import Meters
from vistoken.serve.pictures import Fetch, open_pictures
from vistoken.serve.schema import ChatRequest
from vistoken.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

_LAST_WORDS_S = 5.0
"""Time for the event that says that an answer took too long."""


class ChatRoute:
    """Answers chat requests.

    Args:
        engines: By name.
        settings: What is allowed.
        meters: Where to count.
        fetch: Gets pictures by URL; None where that is not allowed.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        settings: ServeSettings,
        meters: Meters,
        fetch: Fetch | None,
    ) -> None:
        self._engines, self._settings = engines, settings
        self._meters, self._fetch = meters, fetch
        # Pictures are opened and prompts made here, beside the event loop and the engine's thread.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="vistoken-prepare")
        # A slow host elsewhere holds up nobody who brought his pictures along.
        self._fetching = ThreadPoolExecutor(8, thread_name_prefix="vistoken-fetch")

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, asked: ChatRequest, request: Request) -> Response:
        """Answer a request.

        Raises:
            RequestError: It is refused.
        """
        engine = self._engines.get(asked.model)
        if engine is None:
            raise RequestError(
                f"there is no model {asked.model[:200]!r} here; GET /v1/models lists those that "
                "there are",
                404,
                "model_not_found",
                "model",
            )
        meant = read_request(asked, self._settings)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.answer_timeout_s
        listening = Listening(loop, whole=not asked.stream)
        completion = Completion(asked.model, meant.sampling.n)
        gone = asyncio.create_task(_until_gone(request))
        try:
            threads = self._fetching if self._fetches(meant) else self._threads
            work = loop.run_in_executor(threads, self._put, engine, meant, listening)
            if not await _first(work, gone, deadline - loop.time()):
                listening.cancel()
                return Response(status_code=CLIENT_LEFT)
            if asked.stream:
                options = asked.stream_options
                usage = options is not None and options.include_usage
                events = self._stream(listening, completion, meant.sampling.n, deadline, usage)
                return _Stream(events, listening, deadline)
            answer = asyncio.create_task(self._whole(listening, completion, deadline))
            if not await _first(answer, gone, None):
                answer.cancel()
                listening.cancel()
                return Response(status_code=CLIENT_LEFT)
            return answer.result()
        except BaseException:
            listening.cancel()
            raise
        finally:
            gone.cancel()

    def _fetches(self, meant: Asked) -> bool:
        return self._fetch is not None and any(s[:4].lower() == "http" for s in meant.sources)

    def _put(self, engine: Engine, meant: Asked, listening: Listening) -> None:
        pictures = open_pictures(meant.sources, self._settings.max_pixels, self._fetch)
        try:
            listening.put(engine, Conversation(meant.messages, pictures, meant.sampling))
        except RequestError:
            raise
        except VistokenError as error:  # what the model's own processor has to say
            raise RequestError(str(error), param="messages") from error

    async def _whole(
        self, listening: Listening, completion: Completion, deadline: float
    ) -> Response:
        async for event in listening.events(deadline, self._settings.answer_timeout_s):
            if isinstance(event, Delta):
                completion.take(event)
        self._meters.answered(listening.usage)
        return JSONResponse(completion.whole(listening.usage).model_dump())

    async def _stream(
        self,
        listening: Listening,
        completion: Completion,
        n: int,
        deadline: float,
        with_usage: bool,
    ) -> AsyncIterator[bytes]:
        for choice in range(n):
            yield format_sse_event(data_str=completion.opening(choice))
        try:
            async for event in listening.events(deadline, self._settings.keep_alive_s):
                if event is None:
                    yield format_sse_event(comment="still at it")
                elif isinstance(event, Done):
                    self._meters.answered(event.usage)
                    if with_usage:
                        yield format_sse_event(data_str=completion.closing(event.usage))
                else:
                    for chunk in completion.chunk(event):
                        yield format_sse_event(data_str=chunk)
        except Exception as error:  # the status is sent already: say it in the stream
            yield format_sse_event(data_str=json.dumps(explained(error).body))
        yield format_sse_event(data_str="[DONE]")


def explained(error: Exception) -> RequestError:
    """An error as the client may see it: ours in its own words, a fault without details."""
    if isinstance(error, RequestError):
        return error
    logger.error("a request failed", exc_info=error)
    return RequestError(
        "the server failed at this request, and has noted why; try again, and tell its operator "
        "if it happens again",
        500,
        "internal_error",
    )


class _Stream(StreamingResponse):
    """Events of an answer; gives the request up however the connection ends."""

    media_type = "text/event-stream"

    def __init__(
        self, content: AsyncIterator[bytes], listening: Listening, deadline: float
    ) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._listening, self._deadline = listening, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # a client that does not read what it is sent must not hold its place for ever either
            async with asyncio.timeout_at(self._deadline + _LAST_WORDS_S):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.info("a client did not read its answer in time")
        finally:
            self._listening.cancel()


async def _until_gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


async def _first(
    work: asyncio.Future[Any], gone: asyncio.Task[None], timeout: float | None
) -> bool:
    """Wait for a piece of work; False if the client left first.

    Raises:
        RequestError: It was not done in time.
    """
    waiting: set[asyncio.Future[Any]] = {work, gone}
    done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if work in done:
        work.result()
        return True
    if gone in done:
        work.add_done_callback(_look)
        return False
    work.add_done_callback(_look)
    raise RequestError("the request could not be prepared in time; try again", 504, "timeout")


def _look(work: asyncio.Future[Any]) -> None:
    """Nobody waits for this any more, but an exception must not be complained of at exit."""
    if not work.cancelled():
        work.exception()
