"""Pictures of a request: from a URL's bytes to pixels, within limits, never from a file."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence

from vistoken.core.errors import DataError
from vistoken.models.images import open_image
from vistoken.serve.engine.protocol import Picture
from vistoken.serve.errors import RequestError

Fetch = Callable[[str, str], bytes]
"""An http(s) URL and the field that holds it -> the picture's bytes."""


def open_pictures(sources: Sequence[str], max_pixels: int, fetch: Fetch | None) -> list[Picture]:
    """Open the pictures of a request.

    Args:
        sources: Their URLs.
        max_pixels: Of all of them together; refused before they are decoded.
        fetch: Gets http(s) URLs; None where they are not allowed.

    Raises:
        RequestError: A URL of another kind, a picture that cannot be read or is too large.
    """
    pictures = []
    left = max_pixels
    for number, source in enumerate(sources):
        where = f"image {number}"
        data = _bytes_of(source, where, fetch)
        try:
            image = open_image(data, max_pixels=max(left, 0), where=where)
        except DataError as error:
            raise RequestError(str(error), code="invalid_image", param="messages") from error
        left -= image.width * image.height
        pictures.append(Picture(image, hashlib.sha256(data).hexdigest()))
    return pictures


def _bytes_of(source: str, where: str, fetch: Fetch | None) -> bytes:
    scheme = source[:8].lower()
    if scheme.startswith("data:"):
        return _from_data_url(source, where)
    if not scheme.startswith(("http://", "https://")):
        raise RequestError(
            f"{where}: only data URLs (data:image/png;base64,...) and http(s) URLs name a picture; "
            "files on the server are out of reach",
            code="invalid_image_url",
            param="messages",
        )
    if fetch is None:
        raise RequestError(
            f"{where}: this server fetches no pictures; send the picture as a data URL "
            "(data:image/png;base64,...), or start the server with --image-urls",
            code="image_urls_not_allowed",
            param="messages",
        )
    return fetch(source, where)


def _from_data_url(url: str, where: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise RequestError(
            f"{where}: the data URL is not base64; write data:image/png;base64,...",
            code="invalid_image_url",
            param="messages",
        )
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"{where}: the data URL is not valid base64; encode the picture again",
            code="invalid_image_url",
            param="messages",
        ) from error
