"""Rows of data files -> examples, and groups of them that share their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vistoken.core.errors import DataError
from vistoken.data.messages import Message, from_llava, image_paths, name_sample, read_messages
from vistoken.data.reading import BadSamples, open_rows, read_good
from vistoken.train.alignment import Scene, read_scenes, scenes_file


@dataclass(frozen=True)
class Example:
    """One row of a data file, checked.

    Attributes:
        where: Names the row in errors.
        messages: The conversation.
        images: Files of its pictures, in order.
        kind: What it asks, empty when the row does not say.
    """

    where: str
    messages: list[Message]
    images: tuple[Path, ...]
    kind: str


@dataclass(frozen=True)
class QuestionGroup:
    """Rows about the same pictures, at most so many."""

    images: tuple[Path, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ScenePicture:
    """A picture with its annotation."""

    image: Path
    scene: Scene


class Items(Dataset[Any]):
    """A list as a map-style data set."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def read_examples(
    files: Sequence[Path], image_root: Path | None, bad: BadSamples | None = None
) -> list[Example]:
    """Read data files.

    Args:
        files: Files of the messages schema, or of LLaVA's records; whatever
            :func:`vistoken.data.reading.open_rows` opens.
        image_root: Folder of the image paths; each file's own when None.
        bad: What to do with faulty rows; the first one stops the reading when None.

    Raises:
        DataError: A file is missing or empty, a row breaks the schema, or a picture is missing.
    """
    bad = bad or BadSamples()
    examples: list[Example] = []
    for path in files:
        root = image_root or path.parent
        known: set[str] = set()  # paths that exist

        def read(
            row: dict[str, Any], where: str, root: Path = root, known: set[str] = known
        ) -> Example:
            return _example(row, where, root, known)

        examples += [example for _, example in read_good(open_rows(path), read, bad)]
    if not examples:
        raise DataError(
            f"no usable row in {', '.join(map(str, files))}; {bad.skipped} were skipped"
        )
    return examples


def group_examples(examples: Sequence[Example], most: int) -> list[QuestionGroup]:
    """Collect rows about the same pictures into groups of at most ``most``, evenly cut.

    Rows without a picture, and rows that begin with different system messages, stay apart.
    """
    by_key: dict[tuple[object, ...], list[Example]] = {}
    for number, example in enumerate(examples):
        key: tuple[object, ...] = (number,)
        if example.images:
            key = (example.images, _system_text(example.messages))
        by_key.setdefault(key, []).append(example)
    groups = []
    for members in by_key.values():
        parts = -(-len(members) // most)
        for part in range(parts):
            chosen = members[part * len(members) // parts : (part + 1) * len(members) // parts]
            groups.append(QuestionGroup(chosen[0].images, tuple(chosen)))
    return groups


def read_pictures(files: Sequence[Path], image_root: Path | None) -> list[ScenePicture]:
    """Pictures with annotations that belong to data files (``x.jsonl`` -> ``x.scenes.jsonl``)."""
    pictures = []
    for path in files:
        root = image_root or path.parent
        for scene in read_scenes(scenes_file(path)):
            pictures.append(ScenePicture(root / scene.image, scene))
    return pictures


def _example(row: dict[str, Any], where: str, root: Path, known: set[str]) -> Example:
    if "conversations" in row:
        row = from_llava(row, where)
    messages = read_messages(row, where)
    paths = image_paths(messages)
    for path in paths:
        if path not in known and not (root / path).is_file():
            raise DataError(
                f"{name_sample(row, where)}: image {root / path} does not exist; check image_root"
            )
        known.add(path)
    kind = row.get("kind", "")
    return Example(
        name_sample(row, where), messages, tuple(root / path for path in paths), str(kind)
    )


def _system_text(messages: Sequence[Message]) -> str:
    if messages[0]["role"] != "system":
        return ""
    return "".join(part["text"] for part in messages[0]["content"] if part["type"] == "text")
