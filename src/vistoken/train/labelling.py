"""Which tokens of a conversation are learned: by the template, or as released code does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vistoken.core.errors import DataError, UsageError
from vistoken.data.labels import (
    IGNORE_LABEL,
    ROLE_ASSISTANT,
    ROLE_TEMPLATE,
    ROLE_USER,
    encode_conversation,
)
from vistoken.data.messages import Message
from vistoken.data.official_masks import OfficialMasks
from vistoken.data.official_samples import expand_images, released_turns
from vistoken.models.dialogue import Span
from vistoken.models.templates import load_template

if TYPE_CHECKING:
    from vistoken.models.processing import VistokenProcessor

Labels = Literal["exact", "official"]


@dataclass(frozen=True)
class Labelled:
    """A tokenised conversation; the four lists have one entry per token.

    Attributes:
        input_ids: Token ids, pictures expanded.
        labels: The token's own id where it is supervised, -100 elsewhere.
        role: One of the `ROLE_` codes of `vistoken.data.labels`.
        turn: Number of the round, from 0.
        images: Per picture the positions [start, stop) of its tokens.
    """

    input_ids: list[int]
    labels: list[int]
    role: list[int]
    turn: list[int]
    images: list[Span]


class Labeller(Protocol):
    """Tokenises and labels conversations."""

    def __call__(
        self, messages: Sequence[Message], image_counts: Sequence[int], where: str
    ) -> Labelled:
        """Label a conversation with pictures of so many tokens.

        Raises:
            DataError: It is faulty, or nothing in it is supervised.
        """


@dataclass(frozen=True)
class ExactLabels:
    """Answers and their terminators, as the chat template's generation blocks say.

    Args:
        processor: Tokenizer and image token.
        template: Text of the chat template.
    """

    processor: VistokenProcessor
    template: str

    def __call__(
        self, messages: Sequence[Message], image_counts: Sequence[int], where: str
    ) -> Labelled:
        """See :class:`Labeller`."""
        made = encode_conversation(
            self.processor.tokenizer,
            self.template,
            messages,
            image_counts,
            self.processor.image_token,
            where=where,
        )
        return Labelled(made.input_ids, made.labels, made.role, made.turn, made.images)


@dataclass(frozen=True)
class OfficialLabels:
    """The masks of released LLaVA code, faults included, for comparison with released models.

    A sample that released code ignores is an error here, or left out and counted.

    Args:
        processor: Tokenizer and image token.
        masks: The released rules.
    """

    processor: VistokenProcessor
    masks: OfficialMasks

    def __call__(
        self, messages: Sequence[Message], image_counts: Sequence[int], where: str
    ) -> Labelled:
        """See :class:`Labeller`; the turn of a token counts the answers before it."""
        turns = released_turns(messages, where)
        sample = self.masks(turns, bool(image_counts), where)
        if sample.mismatch is not None:
            counted, there = sample.mismatch
            raise DataError(
                f"{where}: official labels ignore it: released code counts {counted} tokens where"
                f" there are {there}; use labels: exact, or set on_bad_sample: skip"
            )
        made = expand_images(sample, image_counts, self.processor.image_token_id, where)
        supervised = [label != IGNORE_LABEL for label in made.labels]
        if not any(supervised):
            raise DataError(
                f"{where}: no token would be supervised; end the conversation with an answer that"
                " is not empty"
            )
        role = [ROLE_ASSISTANT if learned else ROLE_TEMPLATE for learned in supervised]
        for start, stop in made.images:
            role[start:stop] = [ROLE_USER] * (stop - start)
        ended = [
            before and not learned
            for before, learned in zip([False, *supervised], supervised, strict=False)
        ]
        last = sum(turn.speaker == "human" for turn in turns) - 1
        turn = [min(number, last) for number in accumulate(ended)]
        return Labelled(made.input_ids, made.labels, role, turn, made.images)


def find_labeller(
    labels: Labels, processor: VistokenProcessor, template: str | None, max_length: int
) -> Labeller:
    """The labeller of a stage.

    Args:
        labels: ``exact`` or ``official``.
        processor: Tokenizer, image token and own template.
        template: Name of the stage's template; the processor's own when None.
        max_length: Where released code cuts text-only samples.

    Raises:
        UsageError: The template is unknown, or ``official`` has none, or a tokenizer it cannot
            count with.
    """
    if labels == "exact":
        text = load_template(template) if template else str(processor.chat_template)
        return ExactLabels(processor, text)
    if template is None:
        raise UsageError(
            "labels: official needs the name of a released template; set template: v1, plain, ..."
        )
    tokenizer = processor.tokenizer
    masks = OfficialMasks(tokenizer, template, max_length, prefixes_stretches(tokenizer))
    return OfficialLabels(processor, masks)


def prefixes_stretches(tokenizer: Any) -> bool | None:
    """Whether a sentencepiece tokenizer puts its space before every stretch (`legacy`).

    None for a tokenizer that has no such setting. Read off its behaviour: the setting itself is
    lost when a tokenizer is saved.
    """
    space = tokenizer.convert_tokens_to_ids("▁")
    if tokenizer.eos_token is None or space in (None, tokenizer.unk_token_id):
        return None
    stretch = tokenizer.encode(f"{tokenizer.eos_token}a", add_special_tokens=False)[1:]
    return bool(stretch == tokenizer.encode("a", add_special_tokens=False))
