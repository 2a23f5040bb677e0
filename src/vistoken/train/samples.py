"""Groups of examples -> batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vistoken.core.errors import DataError
from vistoken.core.tables import split_media
from vistoken.data.labels import encode_conversation
from vistoken.train.encoders import CachedEncoder, Encoder, Pictures, PixelEncoder
from vistoken.train.examples import (
    Example,
    Items,
    QuestionGroup,
    ScenePicture,
    group_examples,
    read_examples,
    read_pictures,
)
from vistoken.train.packing import Packed, PackedBatch, Row, batch_packed, pack

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
