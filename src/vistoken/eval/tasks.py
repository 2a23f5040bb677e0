"""Task files: questions with one right answer each, in the messages schema, grouped by picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistoken.core.errors import DataError
from vistoken.data.messages import from_llava, image_paths, name_sample, read_messages
from vistoken.data.reading import open_rows
from vistoken.models.unread_parts import refuse_unread_parts
from vistoken.train.examples import Example

NO_KIND = "question"
"""Kind of a row that does not say what it asks."""


@dataclass(frozen=True)
class Question:
    """One row of a task file.

    Attributes:
        task: Name of the task.
        id: Unique in the task.
        kind: What it asks.
        example: The conversation; its last message is the right answer.
        answer: The right answer's text.
        others: Further answers that count as right, from the row's ``accepted``.
    """

    task: str
    id: str
    kind: str
    example: Example
    answer: str
    others: tuple[str, ...] = ()

    @property
    def cluster(self) -> str:
        """What is drawn as one in a bootstrap: the pictures, or the question without one."""
        return "|".join(image_paths(self.example.messages)) or self.id


@dataclass(frozen=True)
class Task:
    """A task file as read.

    Attributes:
        name: The file's name without its ending.
        path: The file.
        digest: SHA-256 of the file.
        groups: Questions about the same pictures, in order of appearance.
    """

    name: str
    path: Path
    digest: str
    groups: tuple[tuple[Question, ...], ...]

    @property
    def questions(self) -> list[Question]:
        """All questions, group after group."""
        return [question for group in self.groups for question in group]


def read_tasks(
    paths: Sequence[Path], image_root: Path | None = None, limit: int | None = None
) -> list[Task]:
    """Read task files.

    Args:
        paths: Files; their names without ending name the tasks.
        image_root: Folder of the image paths; each file's own when None.
        limit: Only the first so many pictures (groups of questions) of each file.

    Raises:
        DataError: A file is missing, a row breaks the schema, has no answer or no picture file,
            an id comes twice, or two files have one name.
    """
    tasks: list[Task] = []
    for path in paths:
        task = _read(Path(path), image_root, limit)
        if task.name in {other.name for other in tasks}:
            raise DataError(f"two task files are called {task.name!r}; rename {path}")
        tasks.append(task)
    return tasks


def read_answers(path: Path) -> list[tuple[str, str]]:
    """(kind, answer) of every row of a data file, for the answer prior; pictures are not needed."""
    return [(kind, answer) for _, kind, _, answer, _ in _rows(path)]


def _read(path: Path, image_root: Path | None, limit: int | None) -> Task:
    root = image_root or path.parent
    groups: dict[object, list[Question]] = {}
    seen: set[str] = set()
    known: set[Path] = set()
    for sample_id, kind, messages, answer, others in _rows(path):
        where = f"{path}: sample {sample_id!r}"
        if sample_id in seen:
            raise DataError(f"{where} comes twice; every question needs an id of its own")
        seen.add(sample_id)
        images = tuple(root / image for image in image_paths(messages))
        for image in images:
            if image not in known and not image.is_file():
                raise DataError(f"{where}: image {image} does not exist; check --image-root")
            known.add(image)
        example = Example(where, messages, images, kind)
        key = images or sample_id
        question = Question(path.stem, sample_id, kind, example, answer, others)
        groups.setdefault(key, []).append(question)
    chosen = tuple(tuple(group) for group in list(groups.values())[:limit])
    return Task(path.stem, path, hashlib.sha256(path.read_bytes()).hexdigest(), chosen)


def _rows(path: Path) -> list[tuple[str, str, list[Any], str, tuple[str, ...]]]:
    """Id, kind, messages, answer and further right answers of every row."""
    rows = open_rows(path)
    read = []
    for index in range(len(rows)):
        row, where = rows[index], rows.where(index)
        if "conversations" in row:
            row = from_llava(row, where)
        messages = read_messages(row, where)
        refuse_unread_parts(messages, name_sample(row, where))
        if messages[-1]["role"] != "assistant":
            raise DataError(
                f"{name_sample(row, where)}: the last message must be the right answer (assistant)"
            )
        answer = "".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")
        accepted = row.get("accepted") or []
        if not isinstance(accepted, list):
            raise DataError(f"{name_sample(row, where)}: accepted must be a list of right answers")
        others = tuple(str(one) for one in accepted if str(one) != answer)
        kind = str(row.get("kind") or NO_KIND)
        read.append((str(row["id"]), kind, list(messages), answer, others))
    return read
