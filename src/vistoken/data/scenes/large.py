"""Large scenes with small things: shapes, and digits and letters on plates, each of its own colour.

What is asked can be read at the scene's own size and hardly on a small picture of the whole: at the
default size things are 6 to 8 % of the picture's side, 80 to 112 of 1,344 pixels.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vistoken.core.errors import UsageError
from vistoken.data.scenes.backgrounds import background
from vistoken.data.scenes.folders import check_empty, new_folder, sha256_of, write_json
from vistoken.data.scenes.names import Name
from vistoken.data.scenes.shapes import ShapeSource

Progress = Callable[[str, int, int], None]

SET_NAME = "large-scenes"
SPLITS = ("train", "val")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "green": (40, 150, 70),
    "blue": (38, 92, 214),
    "purple": (128, 60, 170),
    "black": (24, 24, 24),
}
"""Colours of things; every one comes once in a scene."""

ANSWERS: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "star", "cross", "heart"),
    "digit": ("2", "3", "4", "5", "7", "9"),
    "letter": ("A", "E", "H", "K", "S", "T"),
}
"""Kind of question -> what it may be answered with; a scene has two things of every kind."""

_EACH = 2
_CELLS = 4  # things stand in different cells of this many rows and columns
_LEAST, _MOST = 80 / 1344, 112 / 1344
_GROUNDS = ("white", "yellow", "pink", "gray")
_SMALLEST = 112
_QUALITY = 92


@dataclass(frozen=True)
class Thing:
    """Something on a scene.

    Args:
        kind: Key of `ANSWERS`.
        colour: Key of `COLOURS`.
        answer: Which one it is.
        box: (top, left, bottom, right) in pixels.
    """

    kind: str
    colour: str
    answer: str
    box: tuple[int, int, int, int]


def large_scene(
    size_px: int, rng: random.Random, shapes: ShapeSource
) -> tuple[Image.Image, list[Thing]]:
    """Compose one scene.

    Args:
        size_px: Height and width.
        rng: Chooses everything.
        shapes: Draws shapes.

    Returns:
        RGB picture and what is on it.
    """
    picture = background(rng.choice(_GROUNDS), size_px, rng)
    kinds = [kind for kind in ANSWERS for _ in range(_EACH)]
    colours = rng.sample(list(COLOURS), len(kinds))
    places = rng.sample(range(_CELLS**2), len(kinds))
    cell = size_px / _CELLS
    things = []
    for kind, colour, place in zip(kinds, colours, places, strict=True):
        side = round(size_px * rng.uniform(_LEAST, _MOST))
        top = round(place // _CELLS * cell + rng.random() * (cell - side))
        left = round(place % _CELLS * cell + rng.random() * (cell - side))
        answer = rng.choice(ANSWERS[kind])
        drawn = _drawn(kind, colour, answer, side, shapes)
        picture.paste(drawn, (left, top), drawn)
        things.append(Thing(kind, colour, answer, (top, left, top + side, left + side)))
    return picture, things


def make_large_scenes(
    out: Path,
    *,
    scenes: dict[str, int],
    seed: int,
    size_px: int = 1344,
    progress: Progress | None = None,
) -> None:
    """Compose large scenes and write them as a data set.

    Args:
        out: Folder to make; it must not exist or be empty. It appears complete or not at all.
        scenes: Number of scenes of "train" and "val".
        seed: A scene depends only on the seed, its split and its number.
        size_px: Height and width of the pictures.
        progress: Called with a stage, the number done and the total.

    Raises:
        DataError: `out` holds files.
        UsageError: Unknown split, no scene, or pictures too small to hold anything.
    """
    unknown = sorted(set(scenes) - set(SPLITS))
    if unknown or not any(number > 0 for number in scenes.values()):
        raise UsageError(f"large scenes come in {' and '.join(SPLITS)}, got {scenes}")
    if size_px < _SMALLEST:
        raise UsageError(f"size_px is {size_px}; large scenes need at least {_SMALLEST} pixels")
    check_empty(out)
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        for split, number in scenes.items():
            _write_split(folder, split, number, seed, size_px, progress)
        record = {"set": SET_NAME, "seed": seed, "scenes": scenes, "size_px": size_px}
        record["sha256"] = {p.name: sha256_of(p) for p in sorted(folder.glob("*.jsonl"))}
        write_json(folder / "make.json", record)


def rows_of(image: str, things: list[Thing]) -> list[dict[str, Any]]:
    """One question about every thing, in the data schema."""
    rows = []
    for thing in things:
        question = {"type": "text", "text": f"{thing.colour} {thing.kind}?"}
        content = [{"type": "image", "path": image}, question]
        reply = [{"type": "text", "text": thing.answer}]
        rows.append(
            {
                "id": f"{Path(image).stem}-{thing.colour}",
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": reply},
                ],
                "kind": thing.kind,
                "answer": thing.answer,
            }
        )
    return rows


def _write_split(
    folder: Path, split: str, number: int, seed: int, size_px: int, progress: Progress | None
) -> None:
    shapes = ShapeSource()
    with (
        (folder / f"{split}.jsonl").open("w", encoding="utf-8") as rows,
        (folder / f"{split}.truth.jsonl").open("w", encoding="utf-8") as truth,
    ):
        for index in range(number):
            rng = random.Random(f"{SET_NAME} {seed} {split} {index}")
            picture, things = large_scene(size_px, rng, shapes)
            image = f"images/{split}-{index:05d}.jpg"
            picture.save(folder / image, quality=_QUALITY)
            known = {"image": image, "things": [vars(thing) for thing in things]}
            truth.write(json.dumps(known) + "\n")
            rows.writelines(json.dumps(row) + "\n" for row in rows_of(image, things))
            if progress is not None:
                progress(f"compose {split}", index + 1, number)


def _drawn(kind: str, colour: str, answer: str, side: int, shapes: ShapeSource) -> Image.Image:
    """RGBA picture of one thing."""
    if kind == "shape":
        mask = shapes.drawing(Name(answer, f"black:{answer}", answer), "flat").getchannel("A")
        drawn = Image.new("RGBA", mask.size, (*COLOURS[colour], 255))
        drawn.putalpha(mask)
        return drawn.resize((side, side), Image.Resampling.BICUBIC)
    plate = Image.new("RGBA", (side, side), (*COLOURS[colour], 255))
    font = ImageFont.load_default(side)
    middle = (side / 2, side / 2)
    ImageDraw.Draw(plate).text(middle, answer, fill=(255, 255, 255, 255), font=font, anchor="mm")
    return plate
