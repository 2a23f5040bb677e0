"""Samples of the `official` label mode, between our schema and the decoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vistoken.core.errors import DataError
from vistoken.data.labels import IGNORE_LABEL
from vistoken.data.released_templates import Turn
from vistoken.data.schema import Message
from vistoken.models.dialogue import Span
from vistoken.models.templates import IMAGE_MARK
from vistoken.models.unread_parts import refuse_unread_parts

RELEASED_IMAGE_ID = -200
"""Stands for a picture in released ids; never a vocabulary id."""


@dataclass(frozen=True, slots=True)
class OfficialSample:
    """Ids and labels of one conversation, a picture being one position.

    Attributes:
        input_ids: Token ids, `RELEASED_IMAGE_ID` for a picture.
        labels: The token's own id where it is supervised, `IGNORE_LABEL` elsewhere.
        mismatch: Tokens counted and tokens there are, when the sample was ignored because they
            differ; None otherwise.
    """

    input_ids: list[int]
    labels: list[int]
    mismatch: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class ExpandedSample:
    """An `OfficialSample` with every picture at its full number of tokens.

    Attributes:
        input_ids: Token ids, the image token's id for pictures.
        labels: As before, `IGNORE_LABEL` on pictures.
        images: Per picture the positions [start, stop) of its tokens.
    """

    input_ids: list[int]
    labels: list[int]
    images: list[Span]


def released_turns(messages: Sequence[Message], where: str = "conversation") -> list[Turn]:
    """A conversation of our schema as released data files hold it.

    Args:
        messages: As `read_messages` returns them.
        where: Names the sample in errors.

    Raises:
        DataError: A system message, several pictures in one turn, a video or a box: released code
            has none of them.
    """
    refuse_unread_parts(messages, where)
    turns: list[Turn] = []
    for number, message in enumerate(messages, start=1):
        place = f"{where}, message {number}"
        if message["role"] == "system":
            raise DataError(f"{place}: official labels know no system message; leave it out")
        images = sum(part["type"] == "image" for part in message["content"])
        if images > 1:
            raise DataError(
                f"{place}: official labels know one picture in a turn, not {images};"
                " use exact labels"
            )
        text = "\n".join(part["text"] for part in message["content"] if part["type"] == "text")
        text = f"{IMAGE_MARK}\n{text}" if images else text
        turns.append(Turn("human" if message["role"] == "user" else "gpt", text))
    return turns


def expand_images(
    sample: OfficialSample, image_counts: Sequence[int], image_token_id: int, where: str
) -> ExpandedSample:
    """Give every picture its tokens.

    Args:
        sample: Ids and labels with one position per picture.
        image_counts: Number of tokens of each picture, in order.
        image_token_id: Id written for them.
        where: Names the sample in errors.

    Raises:
        DataError: Positions and pictures differ in number.
    """
    marks = sample.input_ids.count(RELEASED_IMAGE_ID)
    if marks != len(image_counts):
        raise DataError(f"{where}: {marks} {IMAGE_MARK} marks for {len(image_counts)} pictures")
    ids: list[int] = []
    labels: list[int] = []
    images: list[Span] = []
    for token, label in zip(sample.input_ids, sample.labels, strict=True):
        if token != RELEASED_IMAGE_ID:
            ids.append(token)
            labels.append(label)
            continue
        count = image_counts[len(images)]
        images.append((len(ids), len(ids) + count))
        ids += [image_token_id] * count
        labels += [IGNORE_LABEL] * count
    return ExpandedSample(ids, labels, images)
