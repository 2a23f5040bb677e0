"""Write vistoken-scenes 1: pictures, rows, annotations, card and credits."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from vistoken.core.errors import UsageError, did_you_mean
from vistoken.data.scenes.folders import check_empty, new_folder, sha256_of, write_json
from vistoken.data.scenes.v1.card import Statistics, data_card
from vistoken.data.scenes.v1.parts import PARTS
from vistoken.data.scenes.v1.samples import Part
from vistoken.data.scenes.v1.splits import SET_NAME, is_held_out_class
from vistoken.data.scenes.v1.workshop import SOURCES, Progress, Workshop

_JPEG_QUALITY = 90


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
        scenes: Number of pictures by split (keys of `PARTS`); None for `full_size`.
        seed: A sample depends only on the seed, its split and its number.
        source: "icons" (fetched through npm, rendered with resvg-py) or "shapes" (offline).
        size_px: Height and width of the pictures; photographs keep theirs.
        progress: Called with a stage, the number done and the total.

    Raises:
        DataError: `out` holds files, or a fetched package is not the pinned one.
        UsageError: Unknown split or source, or no picture at all.
        MachineError: A package cannot be fetched, or a tool for the icons is missing.
    """
    if source not in SOURCES:
        raise UsageError(f"unknown scene source {source!r}; {did_you_mean(source, SOURCES)}")
    wanted = full_size(source) if scenes is None else scenes
    _check(wanted, size_px)
    check_empty(out)
    workshop = Workshop(seed, size_px, source, progress)
    # Everything that has to be fetched is fetched before anything is drawn.
    parts = {name: PARTS[name].make(workshop) for name in wanted}
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        statistics: dict[str, Statistics] = {}
        for name, number in wanted.items():
            statistics[name] = _write_part(folder, name, parts[name], number, progress)
        _write_documents(folder, workshop, wanted, source, statistics)


def full_size(source: str) -> dict[str, int]:
    """Number of pictures of every split; from shapes, of those that need no package.

    Args:
        source: "icons" or "shapes".

    Returns:
        Number by split.
    """
    return {
        name: plan.scenes
        for name, plan in PARTS.items()
        if plan.scenes and (plan.offline or source != "shapes")
    }


def _check(scenes: dict[str, int], size_px: int) -> None:
    if size_px < 112:
        raise UsageError(f"size_px is {size_px}; scenes need at least 112 pixels.")
    for name, number in scenes.items():
        if name not in PARTS:
            raise UsageError(f"unknown split {name!r}; {did_you_mean(name, tuple(PARTS))}")
        if number < 0:
            raise UsageError(f"split {name!r} asks for {number} scenes; ask for 0 or more.")
    if not any(scenes.values()):
        raise UsageError("no split has a scene; ask for some, such as train=100.")


def _write_part(
    folder: Path, name: str, part: Part, number: int, progress: Progress | None
) -> Statistics:
    """Write one split's pictures, rows and annotations; return its short answers by kind."""
    answers: Statistics = {}
    kind = "scenes" if PARTS[name].has_objects else "truth"
    with (
        (folder / f"{name}.jsonl").open("w", encoding="utf-8") as rows,
        (folder / f"{name}.{kind}.jsonl").open("w", encoding="utf-8") as annotations,
    ):
        for index in range(number):
            sample = part.sample(index)
            path = folder / sample.image
            # Conversations share their pictures with the split that they are about.
            if not path.exists():
                sample.picture.save(path, quality=_JPEG_QUALITY)
            annotations.write(json.dumps(sample.annotation) + "\n")
            for row in sample.rows:
                rows.write(json.dumps(row) + "\n")
                answers.setdefault(row["kind"], Counter())[row["answer"]] += 1
            if progress is not None:
                progress(f"compose {name}", index + 1, number)
    return answers


def _write_documents(
    folder: Path,
    workshop: Workshop,
    scenes: dict[str, int],
    source: str,
    statistics: dict[str, Statistics],
) -> None:
    write_json(folder / "CREDITS.json", {s: asdict(c) for s, c in workshop.credits.items()})
    drawings = workshop.icons
    names = [
        asdict(name) | {"is_simple": name.is_simple, "held_out": is_held_out_class(name.word)}
        for name in drawings.names
    ]
    write_json(folder / "names.json", names)
    record = {
        "set": SET_NAME,
        "seed": workshop.seed,
        "source": source,
        "scenes": scenes,
        "size_px": workshop.size_px,
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
    (folder / "DATA_CARD.md").write_text(
        data_card(workshop, scenes, source, statistics), encoding="utf-8"
    )
