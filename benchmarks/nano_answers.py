"""How nano answers: free requests about pictures, absent things, requests for a form of answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano_language import LONGEST, free_answers

from vistoken.eval.answering import Answerer
from vistoken.eval.prompts import PromptMaker
from vistoken.eval.records import Record
from vistoken.eval.scoring import bootstrap_mean, exact_match
from vistoken.eval.tasks import Question
from vistoken.train.encoders import Encoder
from vistoken.train.examples import Example

PICTURE_CHAT = (
    "Tell me everything you see.",
    "Describe the picture in detail.",
    "Make up a story about this picture.",
    "What do you like about this picture?",
    "List all the things in the image.",
)
ENDINGS = {
    "Answer in one word.": "one word, wording of training",
    "One word only, please.": "one word, other wording",
    "Answer in a full sentence.": "a sentence, wording of training",
}
_HINTS = re.compile(r"\s*(?:Answer|Reply|Use|Give|Yes or no)[^?.]*[.?]\s*$")


def picture_chat(
    model: Any, processor: Any, encode: Encoder, data: Path, count: int = 10
) -> dict[str, Any]:
    """Free answers to open requests about the first pictures of a split."""
    questions, asked = [], []
    for number, row in enumerate(_first_rows(data, count)):
        asked.append(PICTURE_CHAT[number % len(PICTURE_CHAT)])
        questions.append(_question(row, data.parent, asked[-1], "x"))
    texts = _generated(model, processor, encode, questions, LONGEST)
    tokens = [processor.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    return free_answers(asked, tokens, processor.tokenizer)


def absent(records: Sequence[Record]) -> dict[str, Any]:
    """How often nano says that a thing is not there: of absent things, and of present ones.

    The same words ask about both (`absent` and `where`). A wrong answer is known up to its first
    wrong token, so a denial is known by how it begins.
    """
    rows: dict[str, Any] = {}
    for name, kind, beginning in (("absent", "absent", "there is no"), ("there", "where", "there")):
        said = [
            (float(record.answer.casefold().strip().startswith(beginning)), record.cluster)
            for record in records
            if record.kind == kind
        ]
        if said:
            share = bootstrap_mean([hit for hit, _ in said], [cluster for _, cluster in said])
            rows[name] = {
                "n": share.n,
                "denied": {k: round(getattr(share, k), 4) for k in ("value", "low", "high")},
            }
    return rows


def one_word(
    model: Any, processor: Any, encode: Encoder, data: Path, count: int = 30
) -> dict[str, Any]:
    """The same questions with the request for one word and for a sentence."""
    wanted = ("name1", "count", "colour", "presence")
    chosen: list[dict[str, Any]] = []
    for kind in wanted:  # equally many of each, answers of one word
        rows = (r for r in _rows(data) if r["kind"] == kind and " " not in r["answer"])
        chosen += [row for row, _ in zip(rows, range(math.ceil(count / len(wanted))), strict=False)]
    result: dict[str, Any] = {}
    for ending, name in ENDINGS.items():
        questions = [
            _question(row, data.parent, f"{bare(_text(row))} {ending}", row["answer"])
            for row in chosen
        ]
        texts = _generated(model, processor, encode, questions, 24)
        lengths = [len(text.split()) for text in texts]
        right = [exact_match(t, row["answer"]) for t, row in zip(texts, chosen, strict=True)]
        result[name] = {
            "request": ending,
            "n": len(texts),
            "one_word": round(sum(n == 1 for n in lengths) / len(lengths), 4),
            "sentence": round(
                sum(n > 2 and t.rstrip().endswith(".") for n, t in zip(lengths, texts, strict=True))
                / len(lengths),
                4,
            ),
            "right_word": round(sum(right) / len(right), 4),
            "answers": texts,
        }
    return result


def bare(question: str) -> str:
    """A question without its request for a form of answer."""
    cut = _HINTS.sub("", question)
    return cut if cut.endswith(("?", ".")) else question


def _rows(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]


def _first_rows(data: Path, count: int) -> list[dict[str, Any]]:
    """One row of each of the first pictures."""
    firsts: dict[str, dict[str, Any]] = {}
    for row in _rows(data):
        firsts.setdefault(_picture(row), row)
    return list(firsts.values())[:count]


def _picture(row: dict[str, Any]) -> str:
    return str(next(p["path"] for p in row["messages"][0]["content"] if p["type"] == "image"))


def _text(row: dict[str, Any]) -> str:
    return " ".join(p["text"] for p in row["messages"][0]["content"] if p["type"] == "text")


def _question(row: dict[str, Any], root: Path, text: str, answer: str) -> Question:
    """A question of one's own about a row's picture."""
    path = _picture(row)
    user: Any = [{"type": "image", "path": path}, {"type": "text", "text": text}]
    messages: Any = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    example = Example(f"{row['id']}: {text}", messages, (root / path,), "own")
    return Question("own", str(row["id"]), "own", example, answer)


def _generated(
    model: Any, processor: Any, encode: Encoder, questions: Sequence[Question], longest: int
) -> list[str]:
    """What the model writes to each question."""
    see = PromptMaker(model, processor, encode)
    answer = Answerer(model, processor, "generate", longest)
    texts = []
    for question in questions:
        texts += [a.text for a in answer(see([question]), [question.answer])]
    return texts
