"""Write a set of scenes: pictures, rows, annotations, card and credits."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vistoken.core.errors import UsageError, did_you_mean
from vistoken.data.scenes.card import data_card
from vistoken.data.scenes.compose import SPLITS, Scene, SceneOptions, compose, scene_rng
from vistoken.data.scenes.folders import check_empty, new_folder, sha256_of, write_json
from vistoken.data.scenes.icons import IconSource
from vistoken.data.scenes.questions import ask
from vistoken.data.scenes.shapes import ShapeSource
from vistoken.data.scenes.sources import DrawingSource

SOURCES = ("icons", "shapes")
FORMAT_VERSION = 1
_JPEG_QUALITY = 90

Progress = Callable[[str, int, int], None]


def make_scenes(
    out: Path,
    *,
    scenes: dict[str, int],
    seed: int,
    source: str = "icons",
    size_px: int = 336,
    progress: Progress | None = None,
) -> None:
    """Compose labelled scenes and write them as a data set.

    Args:
        out: Folder to make; it must not exist or be empty. It appears complete or not at all.
        scenes: Number of scenes by split: "train", "val" (held-out compositions of known
            drawings), "style" (held-out compositions in a held-out style).
        seed: A scene depends only on the seed, its split and its number.
        source: "icons" (fetched through npm, rendered with resvg-py) or "shapes" (offline).
        size_px: Height and width of the pictures.
        progress: Called with a stage, the number done and the total.

    Raises:
        DataError: `out` holds files.
        UsageError: Unknown split or source.
        MachineError: A tool for the icons is missing.
    """
    _check(out, scenes, source)
    drawings: DrawingSource = ShapeSource() if source == "shapes" else IconSource(progress=progress)
    options = SceneOptions(size_px=size_px)
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        statistics = {
            split: _write_split(folder, drawings, options, split, number, seed, progress)
            for split, number in scenes.items()
        }
        _write_documents(folder, drawings, options, scenes, seed, statistics)


def rows_of(scene: Scene, image: str, drawings: DrawingSource, seed: int) -> list[dict[str, Any]]:
    """Put a scene's questions into the data schema.

    Args:
        scene: What is asked about.
        image: Path of its picture, relative to the image root.
        drawings: The source it was composed from.
        seed: Seed of the set.

    Returns:
        One row per question, all with the same picture.
    """
    rng = scene_rng("ask", seed, scene.split, scene.index)
    return [
        {
            "id": f"{scene.scene_id}-{number:02d}",
            "kind": question.kind,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "path": image},
                        {"type": "text", "text": question.text},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
            ],
        }
        for number, question in enumerate(ask(scene, drawings, rng))
    ]


def _check(out: Path, scenes: dict[str, int], source: str) -> None:
    if source not in SOURCES:
        raise UsageError(f"unknown scene source {source!r}; {did_you_mean(source, SOURCES)}")
    for split, number in scenes.items():
        if split not in SPLITS:
            raise UsageError(f"unknown scene split {split!r}; {did_you_mean(split, SPLITS)}")
        if number < 0:
            raise UsageError(f"split {split!r} asks for {number} scenes; ask for 0 or more.")
    check_empty(out)


def _write_split(
    folder: Path,
    drawings: DrawingSource,
    options: SceneOptions,
    split: str,
    number: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Counter[str]]:
    """Write pictures, rows and annotations of one split; return its answers by kind."""
    answers: dict[str, Counter[str]] = {}
    with (
        (folder / f"{split}.jsonl").open("w", encoding="utf-8") as rows_file,
        (folder / f"{split}.scenes.jsonl").open("w", encoding="utf-8") as scenes_file,
    ):
        for index in range(number):
            scene, picture = compose(drawings, options, seed=seed, split=split, index=index)
            image = f"images/{scene.scene_id}.jpg"
            picture.save(folder / image, quality=_JPEG_QUALITY)
            scenes_file.write(json.dumps(scene.annotation(image)) + "\n")
            for row in rows_of(scene, image, drawings, seed):
                rows_file.write(json.dumps(row) + "\n")
                answer = row["messages"][-1]["content"][0]["text"]
                answers.setdefault(row["kind"], Counter())[answer] += 1
            if progress is not None:
                progress(f"compose {split}", index + 1, number)
    return answers


def _write_documents(
    folder: Path,
    drawings: DrawingSource,
    options: SceneOptions,
    scenes: dict[str, int],
    seed: int,
    statistics: dict[str, dict[str, Counter[str]]],
) -> None:
    credits = {style: asdict(credit) for style, credit in drawings.credits.items()}
    write_json(folder / "CREDITS.json", credits)
    names = [asdict(name) | {"is_simple": name.is_simple} for name in drawings.names]
    write_json(folder / "names.json", names)
    record = {
        "format": FORMAT_VERSION,
        "seed": seed,
        "source": drawings.title,
        "scenes": scenes,
        "size_px": options.size_px,
        "object_counts": dict(options.object_counts),
        "train_styles": drawings.train_styles,
        "held_out_styles": drawings.held_out_styles,
        "versions": {name: importlib.metadata.version(name) for name in ("pillow", "numpy")},
        "questions": {
            split: {kind: sum(answers.values()) for kind, answers in sorted(kinds.items())}
            for split, kinds in statistics.items()
        },
        "sha256": {path.name: sha256_of(path) for path in sorted(folder.glob("*.jsonl"))},
    }
    write_json(folder / "make.json", record)
    card = data_card(drawings, options, scenes, seed, statistics)
    (folder / "DATA_CARD.md").write_text(card, encoding="utf-8")
