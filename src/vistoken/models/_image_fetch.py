"""Fetching a picture over http(s), with a limit on size and on time."""

from __future__ import annotations

import time
import urllib.request
from http.client import HTTPException

from vistoken.core.errors import DataError

MAX_BYTES = 32 * 2**20
TIMEOUT_S = 20.0
_CHUNK_BYTES = 2**16


def fetch_url(
    url: str, name: str, *, max_bytes: int = MAX_BYTES, timeout_s: float = TIMEOUT_S
) -> bytes:
    """Fetch the bytes behind an http(s) URL.

    Args:
        url: The address.
        name: Names the picture in errors.
        max_bytes: Stop when the answer is longer.
        timeout_s: Stop when the answer is not complete by then.

    Returns:
        The body of the answer.

    Raises:
        DataError: The address cannot be fetched within the limits.
    """
    deadline = time.monotonic() + timeout_s
    body = bytearray()
    try:
        with _opener().open(url, timeout=timeout_s) as answer:
            while chunk := answer.read1(_CHUNK_BYTES):
                body += chunk
                if len(body) > max_bytes:
                    raise DataError(
                        f"{name} is longer than {max_bytes:,} bytes; download and shrink it first"
                    )
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{name} did not arrive within {timeout_s:g} s; download it first"
                    )
    except (OSError, HTTPException, ValueError) as error:
        raise DataError(f"{name} cannot be fetched ({error}); check the address") from error
    return bytes(body)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https alone: a redirect to file: or ftp: finds no handler."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
