"""Groups of examples -> batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vistoken.core.errors import DataError
from vistoken.core.tables import split_media
from vistoken.data.bad_samples import BadSamples, LeftOut
from vistoken.train.encoders import CachedEncoder, Encoder, Pictures, PixelEncoder
from vistoken.train.examples import Example, Items, ScenePicture, read_examples, read_pictures
from vistoken.train.grouping import QuestionGroup, group_examples
from vistoken.train.labelling import ExactLabels, Labeller
from vistoken.train.packing import (
    Packed,
    PackedBatch,
    batch_packed,
    fit_rows,
    join,
    pack,
    sharable_prefix,
)
from vistoken.train.rows import MadeRow, RowMaker
from vistoken.train.settings import TooLong

if TYPE_CHECKING:
    from vistoken.models.processing import VistokenProcessor

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


@dataclass(frozen=True)
class _Sequence:
    """A packed sequence and the numbers of its pictures in the batch."""

    packed: Packed
    media: tuple[int, ...]


@dataclass
class QuestionCollator:
    """Groups of questions -> packed batch with pictures.

    Args:
        processor: Tokenizer and token counts.
        template: Text of the chat template, for labels by its generation blocks.
        encode: Gives the pictures.
        max_length: Most tokens of a packed sequence's prefix plus one branch; with
            ``pack_samples`` also of a row.
        too_long: What becomes of longer samples.
        pack_samples: Put several sequences into one row instead of padding each.
        bad: What to do with faulty samples; the default stops at the first.
        label: Tokenises and labels in another way than by ``template``.
    """

    processor: VistokenProcessor
    template: str
    encode: Encoder
    max_length: int
    too_long: TooLong = "error"
    pack_samples: bool = False
    bad: BadSamples = field(default_factory=BadSamples)
    label: Labeller | None = None

    def __post_init__(self) -> None:
        label = self.label or ExactLabels(self.processor, self.template)
        self.make = RowMaker(label, self.max_length, self.too_long, self.bad)

    def __call__(self, groups: Sequence[QuestionGroup]) -> dict[str, Any]:
        """Batch of :class:`PackedBatch` and :class:`Pictures`; ``labels`` are the targets.

        Where every sample was dropped, ``batch`` is None and ``labels`` is empty. ``left_out``
        holds a :class:`LeftOut` for whatever the batch lacks.
        """
        left_out: list[LeftOut] = []
        with self.bad.telling(left_out.append):
            made = self._batch(groups)
        return {**made, "left_out": tuple(left_out)}

    def _batch(self, groups: Sequence[QuestionGroup]) -> dict[str, Any]:
        readable, pictures = self._encode(groups)
        counts = self._counts(pictures)
        sequences: list[_Sequence] = []
        start = 0
        for group in readable:
            stop = start + len(group.images)
            sequences += self._sequences(group, range(start, stop), counts[start:stop])
            start = stop
        if not sequences:
            return {"batch": None, "pictures": None, "labels": torch.empty(0, dtype=torch.int64)}
        rows = self._rows(sequences)
        pad = self.processor.tokenizer.pad_token_id
        batch = batch_packed(
            [join([sequence.packed for sequence in row]) for row in rows],
            self.processor.tokenizer.eos_token_id if pad is None else pad,
        )
        media = [medium for row in rows for sequence in row for medium in sequence.media]
        shown = pictures.take(media) if pictures is not None and media else None
        return {"batch": batch, "pictures": shown, "labels": batch.targets}

    def _encode(
        self, groups: Sequence[QuestionGroup]
    ) -> tuple[Sequence[QuestionGroup], Pictures | None]:
        """Groups whose pictures can be read, and the pictures."""
        try:
            return groups, self._pictures(groups)
        except DataError:
            if self.bad.policy == "error":
                raise
        readable = []
        for group in groups:
            try:
                self._pictures([group])
            except DataError as error:
                for example in group.examples:
                    self.bad.take(DataError(f"{example.where}: {error}"), example.id)
            else:
                readable.append(group)
        return readable, self._pictures(readable)

    def _pictures(self, groups: Sequence[QuestionGroup]) -> Pictures | None:
        images = [image for group in groups for image in group.images]
        return self.encode(images) if images else None

    def _counts(self, pictures: Pictures | None) -> list[int]:
        if pictures is None:
            return []
        plan = self.processor.image_processor.plan
        return [len(plan.arrange(table).order) for table in split_media(pictures.view_table)]

    def _sequences(
        self, group: QuestionGroup, media: Sequence[int], counts: Sequence[int]
    ) -> list[_Sequence]:
        """One sequence per prefix; rows that begin alike share it."""
        alone = len(group.examples) == 1
        made = [self.make(example, counts, keep_images=not alone) for example in group.examples]
        shared: dict[object, list[MadeRow]] = {}
        for number, row in enumerate(made):
            if row is not None:
                prefix = sharable_prefix(row.row)
                shared.setdefault(number if prefix is None else prefix, []).append(row)
        return [
            _Sequence(pack([member.row for member in members]), tuple(media[: members[0].images]))
            for members in shared.values()
        ]

    def _rows(self, sequences: list[_Sequence]) -> list[list[_Sequence]]:
        if not self.pack_samples:
            return [[sequence] for sequence in sequences]
        lengths = [len(sequence.packed.input_ids) for sequence in sequences]
        return [[sequences[n] for n in row] for row in fit_rows(lengths, self.max_length)]


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
