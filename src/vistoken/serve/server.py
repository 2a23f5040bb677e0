"""The process: sockets, signals and time limits on connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from vistoken.core.errors import MachineError
from vistoken.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """Take an address, before models are loaded for minutes in vain.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Raises:
        MachineError: The address cannot be listened on.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise MachineError(
            f"the server cannot listen on {host}:{port} ({error.strerror}); choose another --port "
            "or --host"
        ) from error
    return taken


def run_server(
    app: FastAPI,
    settings: ServeSettings,
    listening: socket.socket,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish running answers.

    Args:
        app: The application.
        settings: Its time limits on connections are used here.
        listening: What :func:`bind` gave.
        ready: Called once connections are accepted.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(settings.header_timeout_s),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="info",
        access_log=False,  # requests are counted in the metrics; their bodies are nobody's business
        server_header=False,
        timeout_keep_alive=max(1, round(settings.header_timeout_s)),
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
    )
    asyncio.run(_Server(config, ready).serve(sockets=[listening]))


class _Server(uvicorn.Server):
    """Ends by itself after a signal, instead of raising the signal again: it did what was asked."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would cancel the application and log the traceback
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # a second signal of either kind does not wait for answers any more
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def _protocol(header_timeout_s: float) -> type[H11Protocol]:
    """A protocol whose clients must send complete headers in time.

    uvicorn watches idle connections between requests only, so a client that sends one header byte
    a minute would hold its connection for ever.
    """

    class TimedProtocol(H11Protocol):
        _watch: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch = self.loop.call_later(header_timeout_s, self._check_headers)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._watch is not None:
                self._watch.cancel()
            self._watch = self.loop.call_later(header_timeout_s, self._check_headers)

        def send_400_response(self, msg: str) -> None:
            # What follows a request is no HTTP (its length was a lie, say): uvicorn answers that
            # itself, so the application must not answer any more.
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            try:
                super().send_400_response(msg)
            except h11.LocalProtocolError:  # an answer was on its way already
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._watch is not None:
                self._watch.cancel()
            super().connection_lost(exc)

        def _check_headers(self) -> None:
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.close()

    return TimedProtocol
