"""The `official` label mode: masks exactly as released LLaVA training code computes them.

Released code re-tokenises pieces of the prompt and counts; where the counts disagree with the
whole, the sample trains nothing. That is reproduced here, faults included, for comparison with
released models. New training uses `vistoken.data.labels`.

Source: the label rules of the LLaVA-1.5 preprocessing, behaviour only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from vistoken.core.errors import DataError, UsageError
from vistoken.data.labels import IGNORE_LABEL
from vistoken.data.official_samples import RELEASED_IMAGE_ID, OfficialSample
from vistoken.data.released_templates import (
    CLOSE_IMAGE,
    OPEN_IMAGE,
    ReleasedTemplate,
    Turn,
    released_template,
)
from vistoken.models.templates import IMAGE_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class OfficialMasks:
    """Labels conversations by the released rules.

    Args:
        tokenizer: The tokenizer; it must have a padding token, which released code counts by.
        version: Name of a released template.
        max_length: `model_max_length`: text-only samples are cut here, and samples that reach it
            are not checked.
        legacy: The `legacy` setting the tokenizer was loaded with; None for a tokenizer without
            one, which `v1` then refuses as released code fails on it.
        mark_ends: Write `<im_start>` and `<im_end>` around every picture's mark.

    Raises:
        UsageError: The template is unknown, or the tokenizer has no padding token.
    """

    tokenizer: PreTrainedTokenizerBase
    version: str
    max_length: int
    legacy: bool | None
    mark_ends: bool = False

    def __post_init__(self) -> None:
        """Refuse what would fail at the first sample."""
        template = self._template
        if self.tokenizer.pad_token_id is None:
            raise UsageError(
                "official labels count tokens that are not padding, and the tokenizer has no"
                " padding token; set tokenizer.pad_token"
            )
        if template.style == "two" and self.legacy is None:
            raise UsageError(
                f"official labels of {self.version} need to know the tokenizer's 'legacy' setting;"
                " pass legacy=True or False"
            )

    def __call__(
        self, turns: Sequence[Turn], has_image: bool, where: str = "conversation"
    ) -> OfficialSample:
        """Tokenise and label a conversation.

        Args:
            turns: The turns as the data file holds them, marks in their texts.
            has_image: Whether the record names a picture; marks are plain text otherwise.
            where: Names the sample in errors.

        Raises:
            DataError: Turns the released code fails on: roles out of order, or for the plain
                template anything but a marked question and its caption.
        """
        template = self._template
        if has_image:
            turns = [self._normalise(turn) for turn in turns]
        if template.style == "plain":
            return self._plain(turns, where)
        if template.style == "single":
            return self._single(turns, has_image, where)
        turns = _in_order(turns, where)
        prompt = template.render(turns)
        ids = self._ids(prompt, has_image, cut=True)
        if template.style == "mpt":
            return self._mpt(prompt, ids, has_image)
        return self._rounds(prompt, ids, has_image)

    @property
    def _template(self) -> ReleasedTemplate:
        return released_template(self.version)

    def _normalise(self, turn: Turn) -> Turn:
        """The marks of a turn become one, in front."""
        text = turn.text
        if IMAGE_MARK in text:
            text = f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
            if self._template.tags:
                text = text.replace(IMAGE_MARK, f"<Image>{IMAGE_MARK}</Image>")
        if self.mark_ends:
            text = text.replace(IMAGE_MARK, OPEN_IMAGE + IMAGE_MARK + CLOSE_IMAGE)
        return Turn(turn.speaker, text)

    def _ids(self, text: str, has_image: bool, cut: bool = False) -> list[int]:
        """Token ids; the pieces around pictures are calls of their own."""
        if not has_image:
            length = self.max_length if cut else None
            encoded = self.tokenizer(
                text, truncation=length is not None, max_length=length, verbose=False
            )
            return list(cast("list[int]", encoded["input_ids"]))
        pieces = [
            list(cast("list[int]", self.tokenizer(piece, verbose=False)["input_ids"]))
            for piece in text.split(IMAGE_MARK)
        ]
        opens = bool(pieces[0]) and pieces[0][0] == self.tokenizer.bos_token_id
        ids = pieces[0][:1] if opens else []
        for number, piece in enumerate(pieces):
            if number:
                ids.append(RELEASED_IMAGE_ID)
            ids += piece[1:] if opens else piece
        return ids

    def _count(self, text: str, has_image: bool) -> int:
        return len(self._ids(text, has_image))

    def _rounds(self, prompt: str, ids: list[int], has_image: bool) -> OfficialSample:
        """Rounds end with `sep2`; each is counted with an opening token of its own."""
        template = self._template
        header = "[/INST] " if template.style == "llama-2" else f"{template.sep}ASSISTANT: "
        labels = list(ids)
        cursor = 1
        _ignore(labels, 0, cursor)
        for number, text in enumerate(prompt.split(template.sep2)):
            parts = text.split(header)
            if not text or len(parts) != 2:
                break
            length = self._count(text, has_image)
            instruction = self._count(parts[0] + header, has_image) - 2
            if number and template.style == "two" and not self.legacy:
                length, instruction = length - 1, instruction - 1
            _ignore(labels, cursor, cursor + instruction)
            cursor += length
        return self._closed(ids, labels, cursor)

    def _mpt(self, prompt: str, ids: list[int], has_image: bool) -> OfficialSample:
        """The first round has the system text in front; turns end with `sep`."""
        template = self._template
        header = template.sep + template.assistant
        pieces = prompt.split(template.sep)
        starts = [0, *range(3, len(pieces), 2)]
        rounds = [
            template.sep.join(pieces[start:stop])
            for start, stop in zip(starts, [*starts[1:], len(pieces)], strict=True)
        ]
        labels = list(ids)
        cursor = 0
        for number, text in enumerate(rounds):
            parts = text.split(header)
            if not text or len(parts) != 2:
                break
            length = self._count(text, has_image)
            instruction = self._count(parts[0] + header, has_image) - 1
            if number and self.legacy:
                length, instruction = length + 1, instruction + 1
            _ignore(labels, cursor, cursor + instruction)
            cursor += length
        return self._closed(ids, labels, cursor)

    def _closed(self, ids: list[int], labels: list[int], cursor: int) -> OfficialSample:
        """Nothing behind the last round is supervised; wrong counts cost the whole sample."""
        _ignore(labels, cursor, len(labels))
        total = sum(token != self.tokenizer.pad_token_id for token in ids)
        if cursor < self.max_length and cursor != total:
            return OfficialSample(ids, [IGNORE_LABEL] * len(ids), (cursor, total))
        return OfficialSample(ids, labels, None)

    def _plain(self, turns: Sequence[Turn], where: str) -> OfficialSample:
        if len(turns) != 2 or IMAGE_MARK not in turns[0].text:
            raise DataError(
                f"{where}: the plain template takes a question with an {IMAGE_MARK} mark and its"
                f" caption, not {len(turns)} turns; use another template for such samples"
            )
        ids = self._ids(IMAGE_MARK + turns[1].text + self._template.sep, True)
        labels = list(ids)
        _ignore(labels, 0, self._count(IMAGE_MARK, True))
        return OfficialSample(ids, labels, None)

    def _single(self, turns: Sequence[Turn], has_image: bool, where: str) -> OfficialSample:
        """Lengths of the turns on their own are added up, opening tokens and all."""
        if not turns:
            raise DataError(f"{where}: the conversation has no turns")
        template = self._template
        header = f"{template.system}\n\n"
        roles = {"human": template.human, "gpt": template.assistant}
        texts = [f"### {roles[turn.speaker]}: {turn.text}\n" for turn in turns]
        ids = self._ids(header + "".join(texts) + "### ", has_image, cut=True)
        labels = list(ids)
        cursor = len(self._ids(header, has_image, cut=True))
        _ignore(labels, 0, cursor)
        for turn, text in zip(turns, texts, strict=True):
            length = len(self._ids(text, has_image, cut=True))
            if turn.speaker == "human":
                _ignore(labels, cursor + 2, cursor + length)
            cursor += length
        return OfficialSample(ids, labels, None)


def _in_order(turns: Sequence[Turn], where: str) -> list[Turn]:
    """A leading answer is dropped; then the speakers must alternate."""
    kept = list(turns[1:] if turns and turns[0].speaker == "gpt" else turns)
    for number, turn in enumerate(kept):
        if turn.speaker != ("gpt" if number % 2 else "human"):
            raise DataError(f"{where}: two turns of {turn.speaker} in a row; let them alternate")
    if not kept:
        raise DataError(f"{where}: the conversation has no question")
    return kept


def _ignore(labels: list[int], start: int, stop: int) -> None:
    """As a slice of a tensor is filled: what lies past the end is nothing."""
    for position in range(*slice(start, stop).indices(len(labels))):
        labels[position] = IGNORE_LABEL
