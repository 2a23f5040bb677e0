"""What a way to put a question consists of, and the hints that all kinds share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The ways to put one kind of question.

    Attributes:
        seen: Wordings of every split.
        unseen: Wordings that only test splits use.
        hints: Requests for a short answer, added to some questions.
        sentence: The answer as a sentence; empty where the answer is one already.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    hints: tuple[str, ...] = ()
    sentence: str = ""


SENTENCE_HINTS = (
    "Answer in a full sentence.",
    "Reply with a complete sentence.",
    "Give your answer as a sentence.",
)

NAME_HINTS = (
    "Answer with its name only.",
    "Use one to three words.",
    "Answer briefly.",
    "Answer in a word or two.",
)
YES_NO_HINTS = ("Answer yes or no.", "Reply with yes or no.", "Yes or no?", "Answer in one word.")
NUMBER_HINTS = ("Answer with one word.", "Reply with a number word.", "Answer in one word.")
CHOICE_HINTS = ("Answer with one of the two.", *NAME_HINTS)
