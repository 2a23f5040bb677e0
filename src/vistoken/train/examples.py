"""Rows of data files -> examples, each read when a batch needs it.

Opening a file reads every row once, checks it and keeps a few numbers of it: its length in words,
whether it shows a picture, and a hash that tells which rows show the same ones. Texts and paths are
read again when a batch asks for them, so a million rows take less than a hundred megabytes.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vistoken.core.errors import DataError
from vistoken.data.forms import Form, form_of
from vistoken.data.messages import Message, image_paths, is_picture_file, name_sample
from vistoken.data.reading import BadSamples, Rows, open_rows
from vistoken.data.repeated_marks import repeated_marks
from vistoken.data.sampling import modality_length
from vistoken.data.schema import SampleFault, raise_fault
from vistoken.models.unread_parts import refuse_unread_parts
from vistoken.train.lazy import Items, Lazy
from vistoken.train.scenes import Scene, read_scenes, scenes_file

__all__ = [
    "Example",
    "Examples",
    "Items",
    "Numbers",
    "ScenePicture",
    "read_examples",
    "read_pictures",
]

Numbers = NDArray[np.int32]

_KNOWN_PATHS = 1 << 14


@dataclass(frozen=True)
class Example:
    """One row of a data file, checked.

    Attributes:
        where: Names the row in errors.
        messages: The conversation.
        images: Files of its pictures, in order.
        kind: What it asks, empty when the row does not say.
        id: The row's id.
    """

    where: str
    messages: list[Message]
    images: tuple[Path, ...]
    kind: str
    id: str = ""


@dataclass(frozen=True)
class ScenePicture:
    """A picture with its annotation."""

    image: Path
    scene: Scene


@dataclass(frozen=True)
class ExampleFile:
    """A data file whose rows are examples.

    Attributes:
        rows: Its rows.
        form: The form they are written in.
        root: Folder of the image paths.
    """

    rows: Rows
    form: Form
    root: Path

    def example(self, index: int, record: dict[str, Any] | None = None) -> Example:
        """A row as an example; its pictures need not exist.

        Raises:
            DataError: The row is damaged, breaks its form, or holds videos or boxes.
        """
        where = self.rows.where(index)
        record = self.rows[index] if record is None else record
        row = self.form.read(record, where, raise_fault)
        messages = cast("list[Message]", row["messages"])
        images = tuple(self.root / path for path in image_paths(messages))
        name = name_sample(row, where)
        refuse_unread_parts(messages, name)
        return Example(name, messages, images, str(row.get("kind", "")), str(row["id"]))


class Examples(Lazy[Example]):
    """The usable rows of data files; see :func:`read_examples`.

    Args:
        files: The files, in order.
        numbers: Numbers of the usable rows, counted on from file to file.
        lengths: Words of each, negative without a picture.
        counts: Pictures of each.
        keys: Hash of each one's pictures and system text; of no meaning without a picture.
    """

    def __init__(
        self,
        files: Sequence[ExampleFile],
        numbers: Numbers,
        lengths: Numbers,
        counts: Numbers,
        keys: NDArray[np.uint64],
    ) -> None:
        self.files = tuple(files)
        self.numbers = numbers
        self.lengths = lengths
        self.counts = counts
        self.keys = keys
        self._starts = [0, *accumulate(len(file.rows) for file in files)]

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, index: int) -> Example:
        """Read a row."""
        number = int(self.numbers[index])
        place = bisect_right(self._starts, number) - 1
        return self.files[place].example(number - self._starts[place])


def read_examples(
    files: Sequence[Path], image_root: Path | None, bad: BadSamples | None = None
) -> Examples:
    """Open data files and check every row once.

    Args:
        files: Whatever :func:`vistoken.data.reading.open_rows` opens, in any form that
            :func:`vistoken.data.forms.form_of` knows.
        image_root: Folder of the image paths; each file's own when None.
        bad: What to do with faulty rows; the first one stops the reading when None.

    Returns:
        The usable rows, read again when asked for.

    Raises:
        DataError: A file is missing or empty, a row breaks its form, or a picture is missing.
    """
    bad = bad or BadSamples()
    opened: list[ExampleFile] = []
    numbers, lengths, counts, keys = array("i"), array("i"), array("i"), array("Q")
    first = 0
    for path in files:
        rows = open_rows(path)
        file = ExampleFile(rows, form_of(rows, "auto"), image_root or path.parent)
        exists = lru_cache(_KNOWN_PATHS)(is_picture_file)
        with rows.reader() as row_at:
            for index in range(len(rows)):
                sample = ""
                try:
                    record = row_at(index)
                    sample = str(record.get("id", ""))
                    example = file.example(index, record)
                    _check_pictures(example, exists)
                except DataError as error:
                    bad.take(error, sample)
                    continue
                bad.warn(repeated_marks(record, example.where))
                numbers.append(first + index)
                lengths.append(modality_length(example.messages))
                counts.append(len(example.images))
                keys.append(_key(example))
        opened.append(file)
        first += len(rows)
    bad.log_warnings()
    if not numbers:
        raise DataError(
            f"no usable row in {', '.join(map(str, files))}; {bad.skipped} were skipped"
        )
    return Examples(
        opened,
        np.frombuffer(numbers, np.int32),
        np.frombuffer(lengths, np.int32),
        np.frombuffer(counts, np.int32),
        np.frombuffer(keys, np.uint64),
    )


def read_pictures(files: Sequence[Path], image_root: Path | None) -> list[ScenePicture]:
    """Pictures with annotations that belong to data files (``x.jsonl`` -> ``x.scenes.jsonl``)."""
    pictures = []
    for path in files:
        root = image_root or path.parent
        for scene in read_scenes(scenes_file(path)):
            pictures.append(ScenePicture(root / scene.image, scene))
    return pictures


def _check_pictures(example: Example, exists: Callable[[Path], bool]) -> None:
    for image in example.images:
        if not exists(image):
            raise SampleFault(
                "image-missing",
                f"{example.where}: image {image} does not exist; check image_root",
            )


def _key(example: Example) -> int:
    """The same for rows that may stand behind one prefix."""
    system = ""
    if example.messages[0]["role"] == "system":
        parts = example.messages[0]["content"]
        system = "".join(part["text"] for part in parts if part["type"] == "text")
    told = "\0".join([*map(str, example.images), system])
    digest = hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
