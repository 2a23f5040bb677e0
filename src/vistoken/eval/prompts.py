"""Questions -> token ids up to the right answer, and that answer's ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistoken.core.errors import DataError, UsageError
from vistoken.core.tables import TOKEN, split_media
from vistoken.data.labels import encode_conversation
from vistoken.eval.tasks import Question
from vistoken.models.outputs import ImageFeatures
from vistoken.train.encoders import Encoder
from vistoken.train.packing import IGNORE, Row

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor


@dataclass(frozen=True)
class Asked:
    """A question as the decoder gets it.

    Attributes:
        row: Ids of the conversation; only its last answer is supervised.
        start: Position of that answer's first token.
        features: Visual tokens of its pictures, None without one.
    """

    row: Row
    start: int
    features: ImageFeatures | None

    @property
    def prompt(self) -> list[int]:
        """Ids up to the answer."""
        return self.row.input_ids[: self.start]

    @property
    def text_map(self) -> Tensor:
        """Role and turn (n, K) int64 of every position up to the answer."""
        roles, turns = self.row.roles[: self.start], self.row.turns[: self.start]
        return TOKEN.make(self.start, role=roles, turn=turns)


class PromptMaker:
    """Renders questions with the model's own chat template, and encodes their pictures once.

    Args:
        model: Encodes the pictures.
        processor: Template, tokenizer and token counts.
        encode: Gives the pictures: from a cache, as pixels, or grey ones instead.

    Raises:
        UsageError: The model has no chat template.
    """

    def __init__(
        self,
        model: VistokenForConditionalGeneration,
        processor: VistokenProcessor,
        encode: Encoder,
    ) -> None:
        if processor.chat_template is None:
            raise UsageError(
                "this model has no chat template, so it cannot be asked; convert or save it again "
                "with one ('vistoken list templates' names those that there are)"
            )
        self.model, self.processor, self.encode = model, processor, encode
        self.template = str(processor.chat_template)
        text: Any = model.config.text_config
        self.longest: int = text.max_position_embeddings

    @torch.inference_mode()
    def __call__(self, group: Sequence[Question]) -> list[Asked]:
        """Prepare questions about the same pictures.

        Raises:
            DataError: A question is longer than the language model can read.
        """
        images = group[0].example.images
        if not images:
            return [self._asked(question, [], None) for question in group]
        pictures = self.encode(images)
        features: ImageFeatures = self.model.get_image_features(
            pictures.pixel_values, pictures.view_table, pictures.tower_features
        )
        plan = self.processor.image_processor.plan
        counts = [len(plan.arrange(table).order) for table in split_media(pictures.view_table)]
        return [self._asked(question, counts, features) for question in group]

    def _asked(
        self, question: Question, counts: Sequence[int], features: ImageFeatures | None
    ) -> Asked:
        example = question.example
        encoded = encode_conversation(
            self.processor.tokenizer,
            self.template,
            example.messages,
            counts,
            self.processor.image_token,
            where=example.where,
        )
        if len(encoded.input_ids) > self.longest:
            raise DataError(
                f"{example.where}: {len(encoded.input_ids)} tokens, the language model reads "
                f"{self.longest}; leave the question out"
            )
        last = max(encoded.turn)
        labels = [
            label if turn == last else IGNORE
            for label, turn in zip(encoded.labels, encoded.turn, strict=True)
        ]
        start = next(place for place, label in enumerate(labels) if label != IGNORE)
        end = encoded.images[-1][1] if encoded.images else 0
        row = Row(encoded.input_ids, labels, end, question.kind, encoded.role, encoded.turn)
        return Asked(row, start, features)
