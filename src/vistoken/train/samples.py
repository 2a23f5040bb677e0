"""Rows of data files -> samples that share a picture -> batches of tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vistoken.core.errors import DataError
from vistoken.core.tables import split_media
from vistoken.data.labels import encode_conversation
from vistoken.data.messages import Message, from_llava, image_paths, name_sample, read_messages
from vistoken.train.alignment import Scene, read_scenes, scenes_file
from vistoken.train.cache import CachedImage, FeatureCache
from vistoken.train.packing import Packed, PackedBatch, Row, batch_packed, pack

if TYPE_CHECKING:
    from vistoken.models.processing import VistokenProcessor


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


@dataclass(frozen=True)
class Pictures:
    """Images of a batch, ready for the connector.

    Attributes:
        view_table: (V, K) int64.
        tower_features: For each anchor view, one map per tower; None when pixels are given.
        pixel_values: Views; None when features are given.
    """

    view_table: Tensor
    tower_features: list[tuple[Tensor, ...]] | None
    pixel_values: Any = None


class Items(Dataset[Any]):
    """A list as a map-style data set."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def read_examples(files: Sequence[Path], image_root: Path | None) -> list[Example]:
    """Read data files of the messages schema.

    Args:
        files: JSON Lines files of the messages schema, or LLaVA's JSON lists (``.json``).
        image_root: Folder of the image paths; each file's own when None.

    Raises:
        DataError: A file is missing or empty, a row breaks the schema, or a picture is missing.
    """
    examples: list[Example] = []
    for path in files:
        root = image_root or path.parent
        before = len(examples)
        known: set[str] = set()  # paths that exist
        for where, row in _rows(path):
            examples.append(_example(row, where, root, known))
        if len(examples) == before:
            raise DataError(f"data file {path} has no rows")
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


class Encoder(Protocol):
    """Gives the pictures of a batch."""

    def __call__(self, images: Sequence[Path]) -> Pictures:
        """Encode files, in order."""


@dataclass(frozen=True)
class CachedEncoder:
    """Pictures from the feature cache."""

    cache: FeatureCache

    def __call__(self, images: Sequence[Path]) -> Pictures:
        """Read features, encoding what is missing."""
        cached: list[CachedImage] = [self.cache.get(image) for image in images]
        return Pictures(
            torch.cat([image.view_table for image in cached]),
            [maps for image in cached for maps in image.tower_features],
        )


@dataclass(frozen=True)
class PixelEncoder:
    """Pictures as pixels, for towers that are trained or not cached."""

    processor: VistokenProcessor

    def __call__(self, images: Sequence[Path]) -> Pictures:
        """Preprocess files."""
        inputs = self.processor.image_processor([str(image) for image in images])
        return Pictures(inputs["view_table"], None, inputs["pixel_values"])


@dataclass
class QuestionCollator:
    """Groups of questions -> packed batch with pictures.

    Args:
        processor: Tokenizer and token counts.
        template: Text of the chat template.
        encode: Gives the pictures.
        max_length: Most tokens of a packed sequence's prefix plus one branch.
    """

    processor: VistokenProcessor
    template: str
    encode: Encoder
    max_length: int

    def __call__(self, groups: Sequence[QuestionGroup]) -> dict[str, Any]:
        """Batch of :class:`PackedBatch` and :class:`Pictures`; ``labels`` are the targets."""
        images = [image for group in groups for image in group.images]
        pictures = self.encode(images) if images else None
        counts = self._counts(pictures)
        samples = []
        start = 0
        for group in groups:
            stop = start + len(group.images)
            samples.append(self._pack(group, counts[start:stop]))
            start = stop
        pad = self.processor.tokenizer.pad_token_id
        batch = batch_packed(samples, self.processor.tokenizer.eos_token_id if pad is None else pad)
        return {"batch": batch, "pictures": pictures, "labels": batch.targets}

    def _counts(self, pictures: Pictures | None) -> list[int]:
        if pictures is None:
            return []
        plan = self.processor.image_processor.plan
        return [len(plan.arrange(table).order) for table in split_media(pictures.view_table)]

    def _pack(self, group: QuestionGroup, counts: Sequence[int]) -> Packed:
        rows = []
        for example in group.examples:
            encoded = encode_conversation(
                self.processor.tokenizer,
                self.template,
                example.messages,
                counts,
                self.processor.image_token,
                where=example.where,
            )
            if len(encoded.input_ids) > self.max_length:
                raise DataError(
                    f"{example.where}: {len(encoded.input_ids)} tokens, max_length is "
                    f"{self.max_length}; shorten the conversation or raise max_length"
                )
            end = encoded.images[-1][1] if encoded.images else 0
            rows.append(Row(encoded.input_ids, encoded.labels, end, example.kind))
        return pack(rows)


@dataclass
class SceneCollator:
    """Annotated pictures -> batch for the alignment stage."""

    encode: Encoder

    def __call__(self, pictures: Sequence[ScenePicture]) -> dict[str, Any]:
        """Batch of :class:`Pictures` and scenes."""
        return {
            "pictures": self.encode([picture.image for picture in pictures]),
            "scenes": tuple(picture.scene for picture in pictures),
        }


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a data file with their place in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error.strerror}") from error
    if path.suffix == ".json":
        records = _parse(text, str(path))
        if not isinstance(records, list):
            raise DataError(f"{path}: a .json data file must be a list of LLaVA's records")
        for number, record in enumerate(records):
            where = f"{path}, record {number}"
            yield where, from_llava(_object(record, where), where)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(_parse(line, where), where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object")
    return value


def _example(row: dict[str, Any], where: str, root: Path, known: set[str]) -> Example:
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


__all__ = [
    "CachedEncoder",
    "Encoder",
    "Example",
    "Items",
    "PackedBatch",
    "Pictures",
    "PixelEncoder",
    "QuestionCollator",
    "QuestionGroup",
    "SceneCollator",
    "ScenePicture",
    "group_examples",
    "read_examples",
    "read_pictures",
]
