"""Examples -> tokenised rows, with what to do about those that are too long or faulty."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from vistoken.core.errors import DataError
from vistoken.data.bad_samples import BadSamples, LeftOut, Reason
from vistoken.data.messages import Message, image_paths
from vistoken.train.examples import Example
from vistoken.train.labelling import Labelled, Labeller
from vistoken.train.packing import Row
from vistoken.train.settings import TooLong

logger = logging.getLogger(__name__)


@dataclass
class TooLongCounts:
    """What was left out because of the length limit.

    Attributes:
        turns: Rounds (a question and its answer) cut off the ends of conversations.
        samples: Whole conversations.
    """

    turns: int = 0
    samples: int = 0


@dataclass(frozen=True)
class MadeRow:
    """A row and how many of its example's pictures it still shows."""

    row: Row
    images: int


@dataclass
class RowMaker:
    """Tokenises examples.

    A conversation over the limit loses whole rounds at its end, or goes; tokens are never cut off,
    so no picture and no answer is ever halved.

    Args:
        label: Tokenises and labels.
        max_length: Most tokens of a row.
        too_long: ``error``, ``drop-turns`` or ``drop-sample``.
        bad: What to do with faulty samples.
    """

    label: Labeller
    max_length: int
    too_long: TooLong = "error"
    bad: BadSamples = field(default_factory=BadSamples)
    counts: TooLongCounts = field(default_factory=TooLongCounts)

    def __call__(
        self, example: Example, image_counts: Sequence[int], keep_images: bool
    ) -> MadeRow | None:
        """Tokenise an example.

        Args:
            example: The conversation.
            image_counts: Number of tokens of each of its pictures.
            keep_images: Whether every picture must stay, as others share them.

        Returns:
            The row; None when it was dropped, which is counted.

        Raises:
            DataError: It is faulty or too long, and that is to stop the run.
        """
        try:
            labelled = self.label(example.messages, image_counts, example.where)
            if len(labelled.input_ids) > self.max_length:
                return self._shorten(example, image_counts, len(labelled.input_ids), keep_images)
        except DataError as error:
            self.bad.take(error, example.id)
            return None
        return _row(labelled, example)

    def _shorten(
        self, example: Example, image_counts: Sequence[int], length: int, keep_images: bool
    ) -> MadeRow | None:
        """What a conversation over the limit becomes."""
        if self.too_long == "error":
            raise DataError(
                f"{example.where}: {length} tokens, max_length is {self.max_length}; shorten the "
                "conversation, raise max_length, or set too_long: drop-turns or drop-sample"
            )
        if self.too_long == "drop-turns":
            messages = example.messages
            for dropped in range(1, _rounds(messages)):
                messages = _without_last_round(messages)
                images = len(image_paths(messages))
                if keep_images and images < len(image_counts):
                    break
                labelled = self.label(messages, image_counts[:images], example.where)
                if len(labelled.input_ids) <= self.max_length:
                    self._leave_out("too_long_turns", example, length, dropped)
                    return _row(labelled, example)
        self._leave_out("too_long_samples", example, length, 1)
        return None

    def _leave_out(self, reason: Reason, example: Example, length: int, count: int) -> None:
        what = "left out"
        if reason == "too_long_turns":
            self.counts.turns += count
            what = f"{count} rounds at the end left out"
        else:
            self.counts.samples += count
        message = f"{example.where}: {length} tokens, {self.max_length} fit; {what}"
        logger.info(message)
        self.bad.tell(LeftOut(reason, example.id, message, count))


def _row(labelled: Labelled, example: Example) -> MadeRow:
    end = labelled.images[-1][1] if labelled.images else 0
    row = Row(labelled.input_ids, labelled.labels, end, example.kind, labelled.role, labelled.turn)
    return MadeRow(row, len(labelled.images))


def _rounds(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "user" for message in messages)


def _without_last_round(messages: list[Message]) -> list[Message]:
    last = max(n for n, message in enumerate(messages) if message["role"] == "user")
    return messages[:last]
