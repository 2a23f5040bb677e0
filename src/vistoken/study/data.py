"""The data of a study: given or composed, and cut down to the kinds that it asks about."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistoken.core.errors import DataError, UsageError
from vistoken.core.files import write_atomically
from vistoken.data.reading import open_rows
from vistoken.data.scenes import make_scenes
from vistoken.data.scenes.large import make_large_scenes
from vistoken.data.scenes.v1 import make_set
from vistoken.study.grid import file_digest
from vistoken.study.settings import Data
from vistoken.study.terse import terse_row, terse_scene

Tell = Callable[[str, int, int], None]

_SCENES = ".scenes.jsonl"


@dataclass(frozen=True)
class StudyData:
    """Files that all cells share.

    Attributes:
        root: Folder of the image paths.
        train: Training file.
        tasks: Task files.
    """

    root: Path
    train: Path
    tasks: tuple[Path, ...]

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file."""
        return {path.name: file_digest(path) for path in (self.train, *self.tasks)}


def prepare(data: Data, given: Path | None, output: Path, progress: Tell | None) -> StudyData:
    """Find or compose the scenes and keep the wanted kinds, in ``output``.

    Args:
        data: What the study wants.
        given: Folder with the splits' files; composed in ``output/scenes`` when None.
        output: Folder of the study.
        progress: Told what is composed.

    Raises:
        DataError: A split is missing, or has no question of the wanted kinds.
        UsageError: There is neither a folder nor anything to compose.
    """
    root = given or output / "scenes"
    if given is None and not root.exists():
        if not data.scenes:
            raise UsageError("this study composes no scenes; give a folder of data with --data")
        _compose(data, root, progress)
    files = {split: _split(root, split) for split in dict.fromkeys((data.train, *data.tasks))}
    if data.kinds is not None or data.wording == "terse":
        files = {split: _keep(path, data, output / "data") for split, path in files.items()}
    return StudyData(root, files[data.train], tuple(files[task] for task in data.tasks))


def _compose(data: Data, root: Path, progress: Tell | None) -> None:
    options: dict[str, Any] = {"scenes": dict(data.scenes), "seed": data.seed, "progress": progress}
    if data.size_px is not None:
        options["size_px"] = data.size_px
    if data.set == "large-scenes":
        make_large_scenes(root, **options)
        return
    make = make_scenes if data.set == "plain" else make_set
    make(root, source=data.source, **options)


def _split(root: Path, split: str) -> Path:
    path = root / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{path} does not exist; the study needs the split {split!r}")
    return path


def _keep(path: Path, data: Data, folder: Path) -> Path:
    """Write the rows of the wanted kinds in the wanted wording; the annotations come along."""
    rows = open_rows(path)
    kept: list[dict[str, Any]] = [
        row
        for row in (rows[number] for number in range(len(rows)))
        if data.kinds is None or row.get("kind") in data.kinds
    ]
    if data.wording == "terse":
        kept = [row for row in map(terse_row, kept) if row is not None]
    if not kept:
        kinds = "any kind" if data.kinds is None else f"the kinds {', '.join(data.kinds)}"
        raise DataError(f"{path} has no question of {kinds}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    _write_lines(target, kept)
    annotations = path.with_suffix(_SCENES)
    if annotations.is_file():
        scenes = [json.loads(line) for line in annotations.read_text("utf-8").splitlines()]
        shorten = data.wording == "terse"
        _write_lines(
            target.with_suffix(_SCENES), [terse_scene(row) if shorten else row for row in scenes]
        )
    return target


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSONL file unless it is there already."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = text.encode("utf-8")
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
