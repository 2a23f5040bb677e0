"""Annotations of pictures: what is where, and which word each visual token shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vistoken.core.errors import DataError
from vistoken.core.tables import TOKEN, TokenKind, rectangles

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """What is known of one picture.

    Attributes:
        image: Path, relative to the image root.
        names: Names of its objects.
        boxes: Their boxes (top, left, bottom, right) in pixels, bottom and right exclusive.
        background: The background's colour word, None when it is not known.
        ignored: Boxes whose tokens show something without a name, such as painted text.
    """

    image: str
    names: tuple[str, ...]
    boxes: tuple[Box, ...]
    background: str | None
    ignored: tuple[Box, ...] = ()


def scenes_file(data: Path) -> Path:
    """Annotations beside a data file: ``train.jsonl`` -> ``train.scenes.jsonl``."""
    return data.with_suffix(".scenes.jsonl")


def read_scenes(path: Path) -> list[Scene]:
    """Read scene annotations.

    Raises:
        DataError: The file is missing or a line is not a scene; the message names the line.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; name-alignment and name retrieval need scene annotations "
            "(vistoken data make writes them)"
        )
    scenes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            scenes.append(_scene(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number}: not a scene annotation ({error})") from error
    return scenes


def _scene(row: dict[str, Any]) -> Scene:
    objects = row["objects"]
    text = row.get("text")
    return Scene(
        row["image"],
        tuple(thing["name"] for thing in objects),
        tuple(_box(thing["box"]) for thing in objects),
        row.get("background"),
        (_box(text["box"]),) if text else (),
    )


def _box(values: Sequence[float]) -> Box:
    top, left, bottom, right = (float(value) for value in values)
    return top, left, bottom, right


def vocabulary(scenes: Sequence[Scene]) -> list[str]:
    """All names and background colours of scenes, sorted."""
    words = {name for scene in scenes for name in scene.names}
    return sorted(words | {scene.background for scene in scenes if scene.background is not None})


def cell_words(token_map: Tensor, scene: Scene) -> list[str | None]:
    """The word that each token of a picture shows, by the centre of its source rectangle.

    Args:
        token_map (Tensor): (N, K) int64.
        scene: What is in the picture.

    Returns:
        N words; None where nothing is known: tokens that are not patches, centres outside every
        known area. Of overlapping boxes the last drawn one counts.
    """
    kinds = TOKEN.get(token_map, "kind").tolist()
    centres = rectangles(token_map)
    rows = ((centres[:, 0] + centres[:, 2]) / 2).tolist()
    cols = ((centres[:, 1] + centres[:, 3]) / 2).tolist()
    words: list[str | None] = []
    for kind, y, x in zip(kinds, rows, cols, strict=True):
        word = None
        if kind == TokenKind.VISUAL and not any(_inside(y, x, box) for box in scene.ignored):
            word = scene.background
            for name, box in zip(scene.names, scene.boxes, strict=True):
                if _inside(y, x, box):
                    word = name
        words.append(word)
    return words


def _inside(y: float, x: float, box: Box) -> bool:
    top, left, bottom, right = box
    return top <= y < bottom and left <= x < right
