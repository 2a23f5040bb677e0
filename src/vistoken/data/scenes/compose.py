"""Compose one scene: which things, how they look, where they stand."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vistoken.core.errors import UsageError
from vistoken.data.scenes.augment import resized, vary_style, visible_crop
from vistoken.data.scenes.backgrounds import COLOURS, background
from vistoken.data.scenes.lettering import WORDS, lettering
from vistoken.data.scenes.names import Name
from vistoken.data.scenes.placing import Box, place_apart
from vistoken.data.scenes.sources import DrawingSource

SPLITS = ("train", "val", "style")
# One composition in ten belongs to the held-out splits, whatever the seed or size of a set.
_HELD_OUT_ONE_IN = 10
_REPEAT_SHARE = {1: 0.0, 2: 0.2}
_REPEAT_SHARE_MANY = 0.35
_TEXT_SHARE = 0.15
_SMALLEST_SHARE, _LARGEST_SHARE = 0.25, 0.5


@dataclass(frozen=True)
class SceneOptions:
    """What every scene of a set has in common.

    Attributes:
        size_px: Height and width.
        object_counts: How often a scene has so many objects, by number of objects (1 to 8).
    """

    size_px: int = 336
    object_counts: tuple[tuple[int, float], ...] = ((1, 0.25), (2, 0.35), (3, 0.40))

    def __post_init__(self) -> None:
        if self.size_px < 112:
            raise UsageError(f"size_px is {self.size_px}; scenes need at least 112 pixels.")
        if not all(1 <= number <= 8 for number, _ in self.object_counts):
            raise UsageError("object_counts names a number outside 1 to 8; choose within it.")


@dataclass(frozen=True)
class PlacedObject:
    """A thing in a scene; `box` is (top, left, bottom, right) in pixels, bottom/right exclusive."""

    name: Name
    style: str
    box: Box

    @property
    def middle(self) -> tuple[float, float]:
        """Centre of the box as (row, col)."""
        top, left, bottom, right = self.box
        return (top + bottom) / 2, (left + right) / 2


@dataclass(frozen=True)
class PlacedText:
    """A painted word; `box` as in `PlacedObject`."""

    word: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """Everything that is true of one picture."""

    split: str
    index: int
    size_px: int
    background: str
    objects: tuple[PlacedObject, ...]
    text: PlacedText | None

    @property
    def scene_id(self) -> str:
        """Unique name within a set."""
        return f"{self.split}-{self.index:06d}"

    def annotation(self, image: str) -> dict[str, Any]:
        """Describe the scene as one JSON object; boxes are (top, left, bottom, right)."""
        return {
            "id": self.scene_id,
            "image": image,
            "size": [self.size_px, self.size_px],
            "background": self.background,
            "objects": [
                {"name": thing.name.word, "style": thing.style, "box": list(thing.box)}
                for thing in self.objects
            ],
            "text": None
            if self.text is None
            else {"word": self.text.word, "box": list(self.text.box)},
        }


def scene_rng(purpose: str, seed: int, split: str, index: int) -> random.Random:
    """Make the random numbers of one scene, which depend on nothing but these values."""
    return random.Random(f"vistoken scenes/{purpose}/{seed}/{split}/{index}")


def is_held_out(words: frozenset[str]) -> bool:
    """Tell whether a composition (the set of names in a scene) is kept out of training.

    The answer is a hash of the names alone, so sets made with other seeds or sizes agree on it.
    """
    digest = hashlib.sha256("\n".join(sorted(words)).encode()).digest()
    return int.from_bytes(digest[:4]) % _HELD_OUT_ONE_IN == 0


def compose(
    source: DrawingSource, options: SceneOptions, *, seed: int, split: str, index: int
) -> tuple[Scene, Image.Image]:
    """Compose one scene.

    Args:
        source: Where drawings come from.
        options: What all scenes of the set share.
        seed: Seed of the set.
        split: "train" (training styles, varied), "val" (training styles as drawn, compositions
            held out) or "style" (held-out styles as drawn, compositions held out).
        index: Number of the scene within its split.

    Returns:
        The scene and its RGB picture.
    """
    rng = scene_rng("compose", seed, split, index)
    names = _choose_names(source, options, split, rng)
    styles = source.held_out_styles if split == "style" else source.train_styles
    things = [(name, rng.choice(styles)) for name in names]
    word = rng.choice(WORDS) if rng.random() < _TEXT_SHARE else None
    return compose_of(source, options, things, word, rng, split=split, index=index)


def compose_of(
    source: DrawingSource,
    options: SceneOptions,
    things: list[tuple[Name, str]],
    word: str | None,
    rng: random.Random,
    *,
    split: str,
    index: int,
) -> tuple[Scene, Image.Image]:
    """Compose a scene of given things.

    Args:
        source: Where drawings come from.
        options: Size of the scene.
        things: What is shown, as names with styles.
        word: What is written, if anything.
        rng: Chooses background, sizes, places and, for training, variations.
        split: As for `compose`.
        index: Number of the scene within its split.

    Returns:
        The scene and its RGB picture.
    """
    clear = [
        c for c in COLOURS if not any(source.background_clashes(name, c) for name, _ in things)
    ]
    colour = rng.choice(clear)
    sides = _sides(len(things), options.size_px, rng)
    patches = [
        _patch(source, name, style, split, side_px, rng)
        for (name, style), side_px in zip(things, sides, strict=True)
    ]
    if word is not None:
        patches.append(lettering(word, options.size_px, rng))
    patches, boxes = place_apart(patches, options.size_px, rng)
    canvas = background(colour, options.size_px, rng)
    for patch, (top, left, _, _) in zip(patches, boxes, strict=True):
        canvas.paste(patch, (left, top), patch)
    objects = tuple(
        PlacedObject(name, style, box)
        for (name, style), box in zip(things, boxes[: len(things)], strict=True)
    )
    text = None if word is None else PlacedText(word, boxes[-1])
    return Scene(split, index, options.size_px, colour, objects, text), canvas


def _choose_names(
    source: DrawingSource, options: SceneOptions, split: str, rng: random.Random
) -> list[Name]:
    numbers, weights = zip(*options.object_counts, strict=True)
    number: int = rng.choices(numbers, weights)[0]
    repeats = rng.random() < _REPEAT_SHARE.get(number, _REPEAT_SHARE_MANY)
    while True:
        distinct = rng.randint(1, number - 1) if repeats else number
        names = rng.sample(source.names, distinct)
        names += [rng.choice(names) for _ in range(number - distinct)]
        if is_held_out(frozenset(name.word for name in names)) == (split != "train"):
            rng.shuffle(names)
            return names


def _sides(number: int, size_px: int, rng: random.Random) -> list[int]:
    """Draw the longer side of each object; crowded scenes get smaller ones."""
    crowding = min(1.0, (3 / number) ** 0.5)
    low, high = _SMALLEST_SHARE * size_px * crowding, _LARGEST_SHARE * size_px * crowding
    return [round(rng.uniform(low, high)) for _ in range(number)]


def _patch(
    source: DrawingSource, name: Name, style: str, split: str, side_px: int, rng: random.Random
) -> Image.Image:
    patch = resized(source.drawing(name, style), side_px)
    if split == "train":
        patch = vary_style(patch, rng, may_mirror=source.may_mirror)
    return visible_crop(patch)
