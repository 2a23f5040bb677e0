"""Writing to disk: files are there whole or not at all, and a full disk is said in one sentence."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vistoken.core.errors import MachineError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# writers in other languages tell the same in their own words
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed")
_FORBIDDEN_WORDS = ("Read-only file system", "Permission denied")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside a file, and the file's own name to what is written there.

    The name is new each time, so that several processes may write the same file. Where the block
    fails, nothing is left and the file is as it was.

    Args:
        path: The file; its folder must exist.

    Yields:
        The temporary name.
    """
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all.

    Args:
        path: The file; its folder must exist.
        content: What it holds.

    Raises:
        MachineError: There is no space, or no permission to write.
    """
    with writing(path), replacing(path) as scratch:
        scratch.write_bytes(content)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong on a full or read-only disk into MachineError; the rest passes.

    Args:
        path: What is being written; named in the error unless the system names a file itself.

    Raises:
        MachineError: There is no space, or no permission to write.
    """
    try:
        yield
    except MachineError:
        raise
    except Exception as error:
        place = getattr(error, "filename", None) or path
        number = getattr(error, "errno", None)
        text = str(error)
        if number in _FULL or any(words in text for words in _FULL_WORDS):
            raise MachineError(
                f"the disk is full: {place} cannot be written; free some space and try again"
            ) from error
        if number in _FORBIDDEN or any(words in text for words in _FORBIDDEN_WORDS):
            raise MachineError(
                f"{place} cannot be written (read-only, or not yours); choose another output "
                "directory"
            ) from error
        raise
