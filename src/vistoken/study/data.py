"""The data of a study: given or composed, and cut down to the kinds that it asks about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vistoken.core.errors import DataError, UsageError
from vistoken.data.reading import open_rows
from vistoken.data.scenes import make_scenes
from vistoken.data.scenes.v1 import make_set
from vistoken.study.grid import file_digest
from vistoken.study.settings import Data
from vistoken.train.trained import write_atomically

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
        make = make_scenes if data.set == "plain" else make_set
        make(root, scenes=dict(data.scenes), seed=data.seed, source=data.source, progress=progress)
    files = {split: _split(root, split) for split in dict.fromkeys((data.train, *data.tasks))}
    if data.kinds is not None:
        files = {split: _keep(path, data.kinds, output / "data") for split, path in files.items()}
    return StudyData(root, files[data.train], tuple(files[task] for task in data.tasks))


def _split(root: Path, split: str) -> Path:
    path = root / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{path} does not exist; the study needs the split {split!r}")
    return path


def _keep(path: Path, kinds: tuple[str, ...], folder: Path) -> Path:
    """Write the rows of these kinds; the annotations come along."""
    rows = open_rows(path)
    kept = [row for row in (rows[n] for n in range(len(rows))) if row.get("kind") in kinds]
    if not kept:
        raise DataError(f"{path} has no question of the kinds {', '.join(kinds)}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    content = text.encode("utf-8")
    if not target.is_file() or target.read_bytes() != content:
        write_atomically(target, content)
    annotations = path.with_suffix(_SCENES)
    if annotations.is_file():
        shutil.copyfile(annotations, target.with_suffix(_SCENES))
    return target
