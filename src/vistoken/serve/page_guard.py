"""What the page may load and be sent: nothing from elsewhere, in either direction."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; frame-src 'self' data: blob:; worker-src 'self' blob:; "
    "form-action 'self'; base-uri 'self'; frame-ancestors 'self'"
)
"""Content security policy of the page: a browser asks nobody but this server."""

_CALLS = "/gradio_api/"
_UPLOAD = "/gradio_api/upload"
_LONGEST = 2**20


class PageGuard:
    """Middleware around the page.

    Answers carry :data:`POLICY`. Calls that name a file by an address on the network are refused:
    the page's toolkit would fetch it.

    Args:
        app: The application with the page.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http" or scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if scope["method"] == "POST" and path.startswith(_CALLS) and path != _UPLOAD:
            body = await _read(receive)
            if body is None or names_address(body):
                reason = "too long" if body is None else "a file named by an address; upload it"
                await JSONResponse({"detail": reason}, 400)(scope, receive, send)
                return
            receive = _again(body, receive)

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, with_policy)


def names_address(body: bytes) -> bool:
    """Whether a call's JSON names a file by anything but a path."""
    try:
        return _walk(json.loads(body or b"{}"))
    except (ValueError, RecursionError):
        return True


def _walk(value: Any) -> bool:
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and ("://" in path or path.startswith(("//", "data:"))):
            return True
        return any(_walk(inner) for inner in value.values())
    return isinstance(value, list) and any(_walk(inner) for inner in value)


async def _read(receive: Receive) -> bytes | None:
    """A request's body; None if it is too long."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _LONGEST:
            return None
        if message["type"] != "http.request" or not message.get("more_body", False):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A way to receive a body that was read already."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
