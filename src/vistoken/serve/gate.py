"""What stands before every route: keys, and limits on bodies and on open requests."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vistoken.serve.errors import RequestError
from vistoken.serve.settings import ServeSettings

_OPEN_PATHS = ("/health",)
_API = "/v1/"


class Keys:
    """The keys that a request may bring; only their hashes are kept.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def accept(self, given: str) -> bool:
        """Whether a key is one of them, in a time that does not tell how near it came."""
        digest = _digest(given)
        found = False
        for known in self._digests:  # all of them, whichever fits
            found |= hmac.compare_digest(known, digest)
        return found


class Gate:
    """Middleware that lets through what may come in.

    Every path but ``/health`` asks for a key where keys are set: as a bearer token, or as the
    password of basic authentication, which browsers ask for by themselves.

    Args:
        app: What answers.
        settings: What is allowed.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._keys = Keys(settings.api_keys)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_key(scope, headers)
            if scope["type"] == "http":
                self._check_length(headers)
            if scope["type"] != "http" or not scope["path"].startswith(_API):
                await self._app(scope, receive, send)
                return
            await self._api(scope, receive, send)
        except RequestError as error:
            response = JSONResponse(error.body, error.status, error.headers)
            if error.status == 401 and not scope["path"].startswith(_API):
                # a browser asks its user for a key
                response.headers["WWW-Authenticate"] = 'Basic realm="vistoken"'
            await response(scope, receive, send)

    async def _api(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._open >= self._settings.max_open_requests:
            raise RequestError(
                f"{self._settings.max_open_requests} requests are open already; try again later",
                429,
                "too_many_requests",
                retry_after=2,
            )
        self._open += 1
        try:
            body = await self._read(receive)
            if body is None:  # the client left before it had said what it wants
                return
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._open -= 1

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not len(self._keys) or scope["path"] in _OPEN_PATHS:
            return
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._keys.accept(value.strip()):
            return
        if kind.lower() == "basic" and self._keys.accept(_password(value)):
            return
        raise RequestError(
            "this server asks for an API key; send one as 'Authorization: Bearer KEY'",
            401,
            "invalid_api_key",
        )

    def _check_length(self, headers: Headers) -> None:
        declared = headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and len(declared) < 20:
            self._check_size(int(declared))
        else:
            raise RequestError("the Content-Length is not a number; send the body's bytes")

    def _check_size(self, size: int) -> None:
        if size > self._settings.max_body_bytes:
            raise RequestError(
                f"the request body is longer than {self._settings.max_body_bytes:,} bytes; send "
                "fewer or smaller pictures",
                413,
                "body_too_large",
            )

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, within bounds of size and time; None if the client left."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    self._check_size(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise RequestError(
                f"the request body was not complete after {self._settings.body_timeout_s:g} s; "
                "send it faster",
                408,
                "body_timeout",
            ) from error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that gives a body that was read already, then what else comes."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _password(encoded: str) -> str:
    try:
        decoded = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(":")[2]
