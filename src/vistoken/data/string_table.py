"""A table from strings to numbers that keeps no string: twenty bytes for each.

A check meets every id and every picture's path of a file. Of a million rows a set and a dict of
them would take hundreds of megabytes.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_DIGEST = 12
"""Bytes of a string's hash: of a million strings two have the same one in 1 of 10^17 files."""


class StringTable:
    """Numbers by string, for strings that are looked up but never listed.

    Args:
        recent: Strings that are gathered before they are sorted in among the others.
    """

    def __init__(self, recent: int = 1 << 13) -> None:
        self._most_recent = recent
        self._recent: dict[bytes, int] = {}
        self._digests: NDArray[np.bytes_] = np.empty(0, f"S{_DIGEST}")
        self._numbers: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._digests) + len(self._recent)

    def get(self, text: str) -> int | None:
        """The number of a string; None for one that is not in the table."""
        digest = _digest(text)
        number = self._recent.get(digest)
        if number is not None:
            return number
        place = int(np.searchsorted(self._digests, digest))
        # numpy takes zeros at the end off what it gives back
        if place < len(self._digests) and self._digests[place].ljust(_DIGEST, b"\0") == digest:
            return int(self._numbers[place])
        return None

    def add(self, text: str, number: int) -> None:
        """Put in a string that is not in the table.

        Args:
            text: The string.
            number: A number of at most 63 bits.
        """
        self._recent[_digest(text)] = number
        if len(self._recent) >= self._most_recent:
            self._sort_in()

    def _sort_in(self) -> None:
        digests = np.array(list(self._recent), f"S{_DIGEST}")
        numbers = np.array(list(self._recent.values()), np.int64)
        self._recent.clear()
        order = np.argsort(digests)
        places = np.searchsorted(self._digests, digests[order])
        self._digests = np.insert(self._digests, places, digests[order])
        self._numbers = np.insert(self._numbers, places, numbers[order])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()
