"""A picture with its rows and annotation, whatever kind of picture it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from vistoken.data.scenes.v1.asker import Question


@dataclass(frozen=True)
class Sample:
    """One picture and what is asked about it.

    Attributes:
        image: Path of the picture, relative to the set's folder.
        picture: RGB.
        annotation: What is known of it.
        rows: In the data schema.
    """

    image: str
    picture: Image.Image
    annotation: dict[str, Any]
    rows: list[dict[str, Any]]


class Part(Protocol):
    """Makes the samples of one split."""

    def sample(self, index: int) -> Sample:
        """Make the sample with a number; it depends on nothing but number and seed."""
        ...


def rows_about(
    sample_id: str, image: str, questions: Sequence[Question], **extras: object
) -> list[dict[str, Any]]:
    """Put questions into the data schema, one row each.

    Args:
        sample_id: Unique within the set.
        image: Path of the picture, relative to the image root.
        questions: What is asked.
        **extras: Further fields of every row.

    Returns:
        Rows with the same picture. `answer` is the short form of the reply.
    """
    return [
        {
            "id": f"{sample_id}-{number:02d}",
            "kind": question.kind,
            "answer": question.answer,
            "phrasing": question.phrasing,
            "form": question.form,
            **extras,
            **question.facts,
            "messages": messages_of(image, [question]),
        }
        for number, question in enumerate(questions)
    ]


def messages_of(image: str, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Make a conversation of one or several turns; the picture comes with the first."""
    messages: list[dict[str, Any]] = []
    for number, question in enumerate(questions):
        shown = [{"type": "image", "path": image}] if number == 0 else []
        asked = {"type": "text", "text": question.text}
        messages.append({"role": "user", "content": [*shown, asked]})
        said = {"type": "text", "text": question.reply}
        messages.append({"role": "assistant", "content": [said]})
    return messages
