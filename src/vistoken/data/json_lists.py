"""Where the items of a large JSON list lie in its file, found without loading the list."""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vistoken.core.errors import DataError
from vistoken.core.files import replacing
from vistoken.models.cache_dir import cache_dir

logger = logging.getLogger(__name__)

Places = tuple["array[int]", "array[int]"]
"""First byte of every row, and what the row is called in errors."""

_CHUNK = 1 << 20
_LARGEST_ITEM = 1 << 28
_WORTH_KEEPING = 64 << 20
_SPACE = " \t\r\n"


def list_places(path: Path, stamp: tuple[int, int]) -> Places:
    """Find the items of a JSON list.

    The places in a large file are kept in the cache folder, under the file's size and time.

    Args:
        path: The file.
        stamp: Its size and time of change.

    Returns:
        First byte and number of every item; the numbers have one more entry, the place behind the
        last item.

    Raises:
        DataError: The file is not one complete JSON list of objects.
    """
    if stamp[0] < _WORTH_KEEPING:
        return _as_places(array("q", _scan(path)))
    kept = _kept_file(path, stamp)
    places = _read_kept(kept)
    if places is None:
        places = array("q", _scan(path))
        _keep(kept, places)
    return _as_places(places)


def _as_places(places: array[int]) -> Places:
    """The last place is the end of the list, which no row starts at."""
    end = places.pop()
    numbers = array("q", range(len(places)))
    numbers.append(end)
    return places, numbers


def _scan(path: Path) -> Iterator[int]:
    """Places of the items and, last, of the closing bracket."""
    decoder = json.JSONDecoder()
    # Without line translation, so that lengths of texts are lengths of the file.
    with path.open(encoding="utf-8-sig", newline="") as file:
        window = _Window(path, file.read, _bom_length(path))
        window.expect("[")
        if window.peek() == "]":
            yield window.place
            return
        number = 0
        while True:
            window.peek()
            yield window.place
            window.item(decoder, number)
            number += 1
            if window.peek() == "]":
                yield window.place
                return
            window.expect(",", f"after record {number - 1}")


class _Window:
    """The part of the text that is being looked at, and its place in bytes."""

    def __init__(self, path: Path, read, place: int) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        self.path = path
        self.read = read
        self.place = place
        self.text = ""
        self.at = 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            start = self.at
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            self.place += self.at - start
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def expect(self, character: str, where: str = "at the start") -> None:
        """Go past a character."""
        found = self.peek()
        if found != character:
            seen = repr(found) if found else "its end"
            raise DataError(
                f"{self.path} is not one JSON list: {where} {character!r} is due, not {seen};"
                " write it again, or as one object per line"
            )
        self.at += 1
        self.place += 1

    def item(self, decoder: json.JSONDecoder, number: int) -> None:
        """Go past an item."""
        while True:
            try:
                value, stop = decoder.raw_decode(self.text, self.at)
                break
            except json.JSONDecodeError as error:
                if self.text[self.at : self.at + 1] == "]":
                    raise DataError(
                        f"{self.path}: a comma stands behind record {number - 1}, the last one;"
                        " take it away"
                    ) from error
                # An item may go on behind the window; a fault well inside it will not heal.
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
                small = len(self.text) - self.at < _LARGEST_ITEM
                if not (unfinished and small and self.more()):
                    raise DataError(
                        f"{self.path}, record {number}: not valid JSON ({error.msg})"
                    ) from error
            except (ValueError, RecursionError) as error:  # far too many digits or brackets
                where = f"{self.path}, record {number}"
                raise DataError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(value, dict):
            raise DataError(f"{self.path}, record {number}: must be a JSON object")
        self.place += len(self.text[self.at : stop].encode())
        self.at = stop

    def more(self) -> bool:
        """Move the window on; it grows while an item does not end in it."""
        kept = self.text[self.at :]
        try:
            new = self.read(max(_CHUNK, len(kept)))
        except UnicodeDecodeError as error:
            place = _first_bad_byte(self.path)
            raise DataError(
                f"{self.path}, {place}: not UTF-8 ({error.reason}); encode the file so"
            ) from error
        self.text, self.at = kept + new, 0
        return bool(new)


def _first_bad_byte(path: Path) -> str:
    """Line and byte of what is no UTF-8; read again, as text readers decode far ahead."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {start + error.start} of the file"
            start += len(line)
    return "at its end"


def _bom_length(path: Path) -> int:
    with path.open("rb") as file:
        return 3 if file.read(3) == b"\xef\xbb\xbf" else 0


def _kept_file(path: Path, stamp: tuple[int, int]) -> Path:
    name = hashlib.sha256(f"{path.resolve()}\0{stamp}".encode()).hexdigest()
    return cache_dir() / "json-lists" / f"{name}.npy"


def _read_kept(kept: Path) -> array[int] | None:
    try:
        stored = np.load(kept, allow_pickle=False)
    except (OSError, ValueError):
        return None
    places = array("q")
    places.frombytes(np.ascontiguousarray(stored, np.int64).tobytes())
    return places or None


def _keep(kept: Path, places: array[int]) -> None:
    """Losing these costs a few seconds next time, so a full disk is no error here."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as scratch, scratch.open("wb") as file:
            np.save(file, np.frombuffer(places, np.int64))
    except OSError as error:
        logger.warning("the places of the list's items could not be kept: %s", error)
