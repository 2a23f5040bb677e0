"""A table from strings to numbers that keeps no string: twenty bytes for each.

A check meets every id and every picture's path of a file. Of a million rows a set and a dict of
them would take hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_DIGEST = 12
"""Bytes of a string's hash: of a million strings two have the same one in 1 of 10^17 files."""
_DRAWERS = 256
"""One for each first byte, so that room is asked for and given back in small pieces."""


class StringTable:
    """Numbers by string, for strings that are looked up but never listed.

    Args:
        recent: Strings that are gathered before they are sorted in among the others.
    """

    def __init__(self, recent: int = 1 << 13) -> None:
        self._most_recent = recent
        self._recent: dict[bytes, int] = {}
        self._sorted = 0
        self._digests: list[NDArray[np.bytes_]] = [np.empty(0, f"S{_DIGEST}")] * _DRAWERS
        self._numbers: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * _DRAWERS

    def __len__(self) -> int:
        return self._sorted + len(self._recent)

    def get(self, text: str) -> int | None:
        """The number of a string; None for one that is not in the table."""
        digest = _digest(text)
        number = self._recent.get(digest)
        if number is not None:
            return number
        digests = self._digests[digest[0]]
        place = int(np.searchsorted(digests, digest))
        # numpy takes zeros at the end off what it gives back
        if place < len(digests) and digests[place].ljust(_DIGEST, b"\0") == digest:
            return int(self._numbers[digest[0]][place])
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
        ordered = sorted(self._recent)
        digests = np.array(ordered, f"S{_DIGEST}")
        numbers = np.array([self._recent[digest] for digest in ordered], np.int64)
        bounds = np.searchsorted(digests, [bytes([first]) for first in range(_DRAWERS)]).tolist()
        for drawer, (start, stop) in enumerate(pairwise([*bounds, len(digests)])):
            added = digests[start:stop]
            places = np.searchsorted(self._digests[drawer], added)
            self._digests[drawer] = np.insert(self._digests[drawer], places, added)
            self._numbers[drawer] = np.insert(self._numbers[drawer], places, numbers[start:stop])
        self._sorted += len(digests)
        self._recent.clear()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()
