"""Digests of files, in the two spellings that package indexes use."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from vistoken.core.errors import WeightsError

ALGORITHMS = ("sha256", "sha512")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def parse_digest(digest: str) -> tuple[str, bytes]:
    """Split `sha256:<hex>` or `sha512-<base64>` (npm's form) into algorithm and value.

    Raises:
        ValueError: If the text has neither form.
    """
    for separator, decode in ((":", bytes.fromhex), ("-", base64.b64decode)):
        algorithm, found, value = digest.partition(separator)
        if found and algorithm in ALGORITHMS:
            return algorithm, decode(value)
    raise ValueError(f"{digest!r} is not a digest such as sha256:<hex> or sha512-<base64>")


def check_digest(path: Path, digest: str, what: str) -> None:
    """Compare a file with its pinned digest.

    Args:
        path: The file.
        digest: `sha256:<hex>` or `sha512-<base64>`.
        what: How to call the file in the error.

    Raises:
        WeightsError: If the file is another one.
    """
    algorithm, expected = parse_digest(digest)
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).digest()
    if found != expected:
        raise WeightsError(
            f"{what}: {algorithm} is {found.hex()} but {expected.hex()} was pinned; the download is"
            " damaged or was replaced, so clear the package manager's cache and fetch it again"
        )
