"""Draw right and wrong answers of an evaluation as one picture, for a model card.

    python docs/scripts/contact_sheet.py RESULTS TASK.jsonl OUT.png [--style noto fluent-emoji]
        [--rows 2] [--columns 4] [--seed 0]

RESULTS is a folder that `vistoken eval` wrote. The upper half shows right answers, the lower half
wrong ones, each half of as many kinds of question as it has; the choice follows from the seed and
nobody's taste. With --style only pictures whose drawings are all of these styles are shown, so that
no art is committed whose licence asks for more than Apache, MIT or CC0 do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vistoken.eval.records import Record, Results
from vistoken.eval.tasks import Question, read_tasks

SIDE, TEXT, GAP = 224, 74, 12
INK, RIGHT, WRONG = "#1c2430", "#1a7f37", "#b42318"


def main() -> None:
    """Choose, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("task", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--style", nargs="*", help="styles that may be shown; all without it")
    parser.add_argument("--rows", type=int, default=2, help="of right answers, and of wrong ones")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    (task,) = read_tasks([options.task])
    questions = {question.id: question for question in task.questions}
    allowed = None if options.style is None else shown_in(options.task, options.style)
    records = [
        record
        for record in Results(options.results).records()
        if record.id in questions and (allowed is None or record.cluster in allowed)
    ]
    count = options.rows * options.columns
    chosen = [
        (questions[record.id], record)
        for right in (True, False)
        for record in choose([r for r in records if r.right is right], count, options.seed)
    ]
    if len(chosen) < 2 * count:
        raise SystemExit(f"{options.results} has too few answers to fill {2 * count} places")
    sheet = draw(chosen, options.columns)
    partial = options.out.with_suffix(".partial.png")
    sheet.save(partial, optimize=True)
    os.replace(partial, options.out)


def shown_in(task: Path, styles: Sequence[str]) -> set[str]:
    """Pictures that show drawings of these styles only, from the annotations beside a task."""
    lines = task.with_suffix(".scenes.jsonl").read_text(encoding="utf-8").splitlines()
    scenes = [json.loads(line) for line in lines]
    return {s["image"] for s in scenes if all(t["style"] in styles for t in s["objects"])}


def choose(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """So many answers, kinds taking turns, no picture twice."""
    generator = random.Random(seed)
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(record.kind, []).append(record)
    for waiting in kinds.values():
        generator.shuffle(waiting)
    chosen: list[Record] = []
    seen: set[str] = set()
    while len(chosen) < count and any(kinds.values()):
        for kind in sorted(kinds):
            while kinds[kind]:
                record = kinds[kind].pop()
                if record.cluster not in seen:
                    seen.add(record.cluster)
                    chosen.append(record)
                    break
    return chosen[:count]


def draw(chosen: Sequence[tuple[Question, Record]], columns: int) -> Image.Image:
    """The sheet: pictures in rows, under each the question, the answer and, if wrong, the truth."""
    rows = -(-len(chosen) // columns)
    width, height = GAP + columns * (SIDE + GAP), GAP + rows * (SIDE + TEXT + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (question, record) in enumerate(chosen):
        left = GAP + number % columns * (SIDE + GAP)
        top = GAP + number // columns * (SIDE + TEXT + GAP)
        with Image.open(question.example.images[0]) as picture:
            shown = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(shown, (left, top))
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="#9aa4b2")
        answer = record.answer if record.complete else f"{record.answer} ..."
        lines = [(line, INK) for line in textwrap.wrap(asked(question), 34)[:2]]
        truth = "" if record.right else f" (it is: {record.reference})"
        colour = RIGHT if record.right else WRONG
        lines += [(line, colour) for line in textwrap.wrap(f"{answer}{truth}", 34)[:2]]
        for place, (line, ink) in enumerate(lines):
            pen.text((left, top + SIDE + 4 + 17 * place), line, fill=ink, font=font)
    return sheet


def asked(question: Question) -> str:
    """The last question's text."""
    content = question.example.messages[-2]["content"]
    return " ".join(part["text"] for part in content if part["type"] == "text")


if __name__ == "__main__":
    main()
