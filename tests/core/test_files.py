"""Files are written whole or not at all, by several writers at once."""

from __future__ import annotations

import errno
from pathlib import Path
from threading import Barrier, Thread

import pytest

from vistoken.core.errors import MachineError
from vistoken.core.files import replacing, write_atomically


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"one", b"two"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"before")

    def write() -> None:
        with replacing(path) as scratch:
            scratch.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Each has a name of its own: both are open at once, and the last one to end wins."""
    path, both = tmp_path / "a.bin", Barrier(2)
    names: list[Path] = []

    def write(content: bytes) -> None:
        with replacing(path) as scratch:
            scratch.write_bytes(content)
            both.wait(timeout=30)
            names.append(scratch)

    writers = [Thread(target=write, args=(letter * 1000,)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(set(names)) == 2
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MachineError, match=r"the disk is full: .*a\.json"):
        write_atomically(tmp_path / "a.json", b"")
    assert not list(tmp_path.iterdir())
