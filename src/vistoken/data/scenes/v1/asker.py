"""Put questions into words: wording seen or unseen, hint about the answer's form or none."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from vistoken.data.scenes.v1.wording import SENTENCE_HINTS
from vistoken.data.scenes.v1.wordings import WORDINGS

_SHORT_HINT_SHARE = 0.45
_SENTENCE_HINT_SHARE = 0.12


@dataclass(frozen=True)
class Question:
    """One question with its answer.

    Attributes:
        kind: What is asked for.
        text: The question as put.
        answer: The answer in its short form; the whole text where there is no short one.
        reply: The answer as given: short, or a sentence if the question asks for one.
        phrasing: "seen" or "unseen": whether training uses this wording.
        form: "short" or "sentence".
        facts: More about the question, such as a direction or the sort of a negative.
    """

    kind: str
    text: str
    answer: str
    reply: str
    phrasing: str
    form: str
    facts: dict[str, str] = field(default_factory=dict[str, str])


class Asker:
    """Puts the questions about one scene.

    Args:
        rng: Chooses wordings and hints.
        unseen_phrasings: Share of questions in wordings that training never uses.
    """

    def __init__(self, rng: random.Random, unseen_phrasings: float) -> None:
        self.rng = rng
        self._unseen = unseen_phrasings

    def put(
        self,
        kind: str,
        answer: str,
        *,
        wording: str = "",
        facts: dict[str, str] | None = None,
        **words: str,
    ) -> Question:
        """Put one question.

        Args:
            kind: What is asked for.
            answer: The true answer.
            wording: Key of `WORDINGS` where it is not the kind.
            facts: More about the question.
            **words: What fills the fields of the question and of the sentence.

        Returns:
            The question; a sentence is the answer only where the question asks for one, or
            where there is no shorter one.
        """
        ways = WORDINGS[wording or kind]
        unseen = self.rng.random() < self._unseen
        text = self.rng.choice(ways.unseen if unseen else ways.seen).format(**words)
        text = f"{text[0].upper()}{text[1:]}"
        reply, form = answer, "short" if ways.sentence else "sentence"
        draw = self.rng.random()
        if ways.sentence and draw < _SENTENCE_HINT_SHARE:
            text = f"{text} {self.rng.choice(SENTENCE_HINTS)}"
            reply, form = ways.sentence.format(answer=answer, **words), "sentence"
        elif ways.hints and draw < _SENTENCE_HINT_SHARE + _SHORT_HINT_SHARE:
            text = f"{text} {self.rng.choice(ways.hints)}"
        return Question(
            kind, text, answer, reply, "unseen" if unseen else "seen", form, facts or {}
        )
