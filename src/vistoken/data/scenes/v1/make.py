"""Write vistoken-scenes 1: pictures, rows, annotations, card and credits."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vistoken.core.errors import UsageError, did_you_mean
from vistoken.data.scenes.compose import Scene, scene_rng
from vistoken.data.scenes.folders import check_empty, new_folder, sha256_of, write_json
from vistoken.data.scenes.icons import IconSource
from vistoken.data.scenes.shapes import ShapeSource
from vistoken.data.scenes.sources import DrawingSource
from vistoken.data.scenes.v1.asker import Asker, Question
from vistoken.data.scenes.v1.card import data_card
from vistoken.data.scenes.v1.compose import compose
from vistoken.data.scenes.v1.negatives import Vocabulary
from vistoken.data.scenes.v1.questions import ask, ask_count
from vistoken.data.scenes.v1.splits import SET_NAME, SPLITS, is_held_out_class, names_of

SOURCES = ("icons", "shapes")
_JPEG_QUALITY = 90

Progress = Callable[[str, int, int], None]
Answers = dict[str, Counter[str]]


def make_set(
    out: Path,
    *,
    scenes: dict[str, int] | None = None,
    seed: int = 0,
    source: str = "icons",
    size_px: int = 336,
    progress: Progress | None = None,
) -> None:
    """Write the set or some of its splits.

    Args:
        out: Folder to make; it must not exist or be empty. It appears complete or not at all.
        scenes: Number of scenes by split (keys of `SPLITS`); None for all splits at full size.
        seed: A scene depends only on the seed, its split and its number.
        source: "icons" (fetched through npm, rendered with resvg-py) or "shapes" (offline).
        size_px: Height and width of the pictures.
        progress: Called with a stage, the number done and the total.

    Raises:
        DataError: `out` holds files.
        UsageError: Unknown split or source, or no scene at all.
        MachineError: A tool for the icons is missing.
    """
    if scenes is None:
        scenes = {name: split.scenes for name, split in SPLITS.items()}
    _check(scenes, source, size_px)
    check_empty(out)
    drawings: DrawingSource = ShapeSource() if source == "shapes" else IconSource(progress=progress)
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        statistics: dict[str, Answers] = {}
        for split, number in scenes.items():
            writer = _SplitWriter(folder, drawings, split, seed, size_px)
            statistics[split] = writer.write(number, progress)
        _write_documents(folder, drawings, scenes, seed, size_px, statistics)


def _check(scenes: dict[str, int], source: str, size_px: int) -> None:
    if source not in SOURCES:
        raise UsageError(f"unknown scene source {source!r}; {did_you_mean(source, SOURCES)}")
    if size_px < 112:
        raise UsageError(f"size_px is {size_px}; scenes need at least 112 pixels.")
    for split, number in scenes.items():
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r}; {did_you_mean(split, tuple(SPLITS))}")
        if number < 0:
            raise UsageError(f"split {split!r} asks for {number} scenes; ask for 0 or more.")
    if not any(scenes.values()):
        raise UsageError("no split has a scene; ask for some, such as train=100.")


class _SplitWriter:
    """Writes one split's pictures, rows and annotations into a folder."""

    def __init__(
        self, folder: Path, drawings: DrawingSource, split: str, seed: int, size_px: int
    ) -> None:
        self._folder = folder
        self._drawings = drawings
        self._split = split
        self._seed = seed
        self._size_px = size_px

    def write(self, number: int, progress: Progress | None) -> Answers:
        """Write so many scenes; return the short answers by kind."""
        answers: Answers = {}
        with (
            (self._folder / f"{self._split}.jsonl").open("w", encoding="utf-8") as rows_file,
            (self._folder / f"{self._split}.scenes.jsonl").open("w", encoding="utf-8") as scenes,
        ):
            for index in range(number):
                scene, picture = compose(
                    self._drawings,
                    seed=self._seed,
                    split=self._split,
                    index=index,
                    size_px=self._size_px,
                )
                image = f"images/{scene.scene_id}.jpg"
                picture.save(self._folder / image, quality=_JPEG_QUALITY)
                scenes.write(json.dumps(scene.annotation(image)) + "\n")
                for row in rows_of(scene, image, self._drawings, self._seed):
                    rows_file.write(json.dumps(row) + "\n")
                    answers.setdefault(row["kind"], Counter())[row["answer"]] += 1
                if progress is not None:
                    progress(f"compose {self._split}", index + 1, number)
        return answers


def questions_of(scene: Scene, drawings: DrawingSource, seed: int) -> list[Question]:
    """Ask about a scene as its split does.

    Args:
        scene: What is asked about.
        drawings: The source it was composed from.
        seed: Seed of the set.

    Returns:
        Questions; a dense scene has a single one.
    """
    plan = SPLITS[scene.split]
    asker = Asker(scene_rng("v1/ask", seed, scene.split, scene.index), plan.unseen_phrasings)
    if plan.profile.crowded:
        return ask_count(scene, asker)
    vocabulary = Vocabulary(names_of(plan, drawings.names), drawings.confusable)
    return ask(scene, vocabulary, asker)


def rows_of(scene: Scene, image: str, drawings: DrawingSource, seed: int) -> list[dict[str, Any]]:
    """Put a scene's questions into the data schema.

    Args:
        scene: What is asked about.
        image: Path of its picture, relative to the image root.
        drawings: The source it was composed from.
        seed: Seed of the set.

    Returns:
        One row per question, all with the same picture. `answer` is the short form of the reply.
    """
    return [
        {
            "id": f"{scene.scene_id}-{number:02d}",
            "kind": question.kind,
            "answer": question.answer,
            "phrasing": question.phrasing,
            "form": question.form,
            "things": len(scene.objects),
            **question.facts,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "path": image},
                        {"type": "text", "text": question.text},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": question.reply}]},
            ],
        }
        for number, question in enumerate(questions_of(scene, drawings, seed))
    ]


def _write_documents(
    folder: Path,
    drawings: DrawingSource,
    scenes: dict[str, int],
    seed: int,
    size_px: int,
    statistics: dict[str, Answers],
) -> None:
    write_json(folder / "CREDITS.json", {s: asdict(c) for s, c in drawings.credits.items()})
    names = [
        asdict(name) | {"is_simple": name.is_simple, "held_out": is_held_out_class(name.word)}
        for name in drawings.names
    ]
    write_json(folder / "names.json", names)
    record = {
        "set": SET_NAME,
        "seed": seed,
        "source": drawings.title,
        "scenes": scenes,
        "size_px": size_px,
        "train_styles": drawings.train_styles,
        "held_out_styles": drawings.held_out_styles,
        "versions": {name: importlib.metadata.version(name) for name in ("pillow", "numpy")},
        "questions": {
            split: {kind: answers.total() for kind, answers in sorted(kinds.items())}
            for split, kinds in statistics.items()
        },
        "sha256": {path.name: sha256_of(path) for path in sorted(folder.glob("*.jsonl"))},
    }
    write_json(folder / "make.json", record)
    card = data_card(drawings, scenes, seed, size_px, statistics)
    (folder / "DATA_CARD.md").write_text(card, encoding="utf-8")
