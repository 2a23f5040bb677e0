"""Pictures by URL, for servers that allow it: public addresses only, within size and time.

The address that was checked is the one that is connected to, so a name that resolves differently
a moment later gains nothing; redirects are followed by hand and checked like the first address.
Proxies of the environment are not used, and nothing of the answer but the picture is passed on.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from vistoken import __version__
from vistoken.serve.addresses import Resolve, is_public, resolve_host
from vistoken.serve.errors import RequestError

Connect = Callable[[tuple[str, int], float], socket.socket]
"""(Numeric address, port), seconds -> a connected socket."""

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 2**16
_LONGEST_URL = 8192


class SafeFetch:
    """Fetches pictures for strangers.

    Args:
        max_bytes: Longest picture.
        timeout_s: Seconds for all of it: resolving, connecting, redirects, reading.
        redirects: Most redirects.
        resolve: Finds addresses; the system's resolver unless a test brings its own.
        connect: Opens connections; likewise.
    """

    def __init__(
        self,
        max_bytes: int,
        timeout_s: float,
        redirects: int,
        resolve: Resolve = resolve_host,
        connect: Connect = socket.create_connection,
    ) -> None:
        self._max_bytes, self._timeout_s, self._redirects = max_bytes, timeout_s, redirects
        self._resolve, self._connect = resolve, connect
        self._tls = ssl.create_default_context()

    def __call__(self, url: str, where: str) -> bytes:
        """Fetch a picture; blocks.

        Args:
            url: Its http(s) URL.
            where: Names the picture in errors.

        Raises:
            RequestError: It may not be fetched, or cannot be within the limits.
        """
        deadline = time.monotonic() + self._timeout_s
        for _ in range(self._redirects + 1):
            target = _checked(url, where)
            try:
                found = self._get(target, where, deadline)
            except (OSError, HTTPException, ValueError) as error:
                if time.monotonic() >= deadline:
                    raise self._too_slow(where) from error
                raise _failed(f"{where}: the picture's address does not answer") from error
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise _failed(f"{where}: the address leads through more than {self._redirects} redirects")

    def _get(self, target: SplitResult, where: str, deadline: float) -> bytes | str:
        """The body behind an address, or where it redirects to."""
        host, port = str(target.hostname), target.port or _PORTS[target.scheme]
        connection = HTTPConnection(host, port)
        connection.sock = self._open(host, port, where, deadline)
        with _ended_at(deadline, connection.sock), _closing(connection):
            if target.scheme == "https":
                connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=host)
            path = quote(target.path or "/", safe="/%:@!$&'()*+,;=~-._")
            if target.query:
                path += "?" + quote(target.query, safe="/?%:@!$&'()*+,;=~-._")
            headers = {
                "User-Agent": f"vistoken/{__version__}",
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
            }
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status in _REDIRECTS:
                return answer.getheader("Location") or ""
            if answer.status != 200:
                raise _failed(f"{where}: the picture's address answers with {answer.status}")
            return self._read(answer, where, deadline)

    def _open(self, host: str, port: int, where: str, deadline: float) -> socket.socket:
        addresses = self._resolve(host, port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise RequestError(
                f"{where}: the picture's address is not on the public internet; send the picture "
                "as a data URL",
                code="image_url_not_public",
                param="messages",
            )
        for number, address in enumerate(addresses):
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._too_slow(where)
            try:
                return self._connect((address, port), left)
            except OSError:
                if number == len(addresses) - 1:
                    raise
        raise OSError("no address")

    def _read(self, answer: HTTPResponse, where: str, deadline: float) -> bytes:
        if answer.getheader("Content-Encoding", "identity").lower() != "identity":
            raise _failed(f"{where}: the picture's address sends it compressed, unasked")
        body = bytearray()
        while chunk := answer.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._max_bytes:
                raise _failed(f"{where}: the picture is longer than {self._max_bytes:,} bytes")
            if time.monotonic() >= deadline:
                raise self._too_slow(where)
        # a connection that was cut looks like one that ended
        if time.monotonic() >= deadline:
            raise self._too_slow(where)
        if answer.length:  # not all that was announced
            raise _failed(f"{where}: the picture's address broke off in the middle")
        return bytes(body)

    def _too_slow(self, where: str) -> RequestError:
        return _failed(f"{where}: the picture did not arrive within {self._timeout_s:g} s")


def _checked(url: str, where: str) -> SplitResult:
    """The parts of a URL that may be fetched."""
    try:
        target = urlsplit(url)
        fine = target.scheme in _PORTS and bool(target.hostname) and target.port != 0
        fine = fine and len(url) <= _LONGEST_URL
    except ValueError:
        fine = False
    if not fine:
        raise _failed(f"{where}: the picture's address is no http(s) URL")
    if target.username is not None or target.password is not None:
        raise _failed(f"{where}: the picture's address holds a user name; leave it out")
    return target


def _failed(message: str) -> RequestError:
    return RequestError(message, code="image_fetch_failed", param="messages")


@contextmanager
def _ended_at(deadline: float, sock: socket.socket) -> Generator[None]:
    """Cut a connection at the deadline: a time limit per read would let one byte a second pass."""

    def cut() -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _closing(connection: HTTPConnection) -> Generator[None]:
    try:
        yield
    finally:
        connection.close()
