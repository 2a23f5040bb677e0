"""Compose one scene of vistoken-scenes 1."""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np
from PIL import Image

from vistoken.data.scenes.augment import resized, vary_style, visible_crop
from vistoken.data.scenes.backgrounds import COLOURS, background
from vistoken.data.scenes.compose import PlacedObject, Scene, is_held_out, scene_rng
from vistoken.data.scenes.names import Name
from vistoken.data.scenes.placing import Box, place_apart, place_in_cells, place_in_line
from vistoken.data.scenes.sources import DrawingSource
from vistoken.data.scenes.v1.packages import SEEN_ON_SURFACES
from vistoken.data.scenes.v1.splits import SPLITS, Split, is_popular, names_of

_POPULAR_WEIGHT = 4
_REPEAT_SHARE = 0.3
# Scenes of one family make same-family negatives adversarial: such things do occur together.
_FAMILY_SHARE = 0.35
_LINE_SHARE = 0.25
_LINE_NUMBERS = (3, 4, 5)
_CELLS = (3, 3)
# A drawing stands out if this share of its pixels is so far (in the sum over channels) from the
# background.
_LOOK_PX, _FAR_COLOURS, _FAR_SHARE = 16, 150, 0.5


class Ground(Protocol):
    """Paints a background and says what it is."""

    def __call__(self, size_px: int, rng: random.Random, /) -> tuple[str, Image.Image]:
        """Paint a square; return the word for it and an RGB picture."""
        ...


def compose(
    source: DrawingSource,
    *,
    seed: int,
    split: str,
    index: int,
    size_px: int,
    surface: Ground | None = None,
) -> tuple[Scene, Image.Image]:
    """Compose one scene.

    Args:
        source: Where drawings come from.
        seed: Seed of the set.
        split: A key of `SPLITS`.
        index: Number of the scene within its split.
        size_px: Height and width.
        surface: Paints the surfaces that some splits have behind their things.

    Returns:
        The scene and its RGB picture.
    """
    plan = SPLITS[split]
    rng = scene_rng("v1/compose", seed, split, index)
    names, clear = _choose_names(plan, source, rng)
    styles = source.held_out_styles if plan.held_out_styles else source.train_styles
    things = [(name, rng.choice(styles)) for name in names]
    sides = _sides(plan, len(names), size_px, rng)
    patches = [
        _patch(source, name, style, side_px, plan.varied, rng)
        for (name, style), side_px in zip(things, sides, strict=True)
    ]
    colour = rng.choice([c for c in clear if stand_out(patches, c)] or clear)
    patches, boxes = _place(plan, patches, size_px, rng)
    if surface is not None and rng.random() < plan.surfaces and not _on_any_surface(names):
        colour, canvas = surface(size_px, rng)
    else:
        canvas = background(colour, size_px, rng)
    for patch, (top, left, _, _) in zip(patches, boxes, strict=True):
        canvas.paste(patch, (left, top), patch)
    objects = tuple(
        PlacedObject(name, style, box) for (name, style), box in zip(things, boxes, strict=True)
    )
    return Scene(split, index, size_px, colour, objects, None), canvas


def _choose_names(
    plan: Split, source: DrawingSource, rng: random.Random
) -> tuple[list[Name], list[str]]:
    """Choose what is shown, and list the backgrounds on which all of it can be seen."""
    names = names_of(plan, source.names)
    numbers, weights = zip(*plan.profile.object_counts, strict=True)
    number: int = rng.choices(numbers, weights)[0]
    if plan.profile.crowded:
        repeats, chosen_from = False, names
    else:
        repeats = number > 1 and rng.random() < _REPEAT_SHARE
        chosen_from = _weighted(names)
    while True:
        # At most half of the names, so that enough are left to be asked for as absent.
        distinct = min(rng.randint(1, number - 1) if repeats else number, len(names) // 2)
        pool = _one_family(chosen_from, distinct, rng) or chosen_from
        chosen = _sample(pool, distinct, rng)
        chosen += [rng.choice(chosen) for _ in range(number - distinct)]
        held_out = is_held_out(frozenset(name.word for name in chosen))
        clear = [c for c in COLOURS if not any(source.background_clashes(n, c) for n in chosen)]
        if clear and plan.held_out_compositions in (None, held_out):
            rng.shuffle(chosen)
            return chosen, clear


def stand_out(patches: list[Image.Image], colour: str) -> bool:
    """Tell whether enough of every drawing differs from a background colour.

    Args:
        patches: RGBA drawings.
        colour: A key of `COLOURS`.

    Returns:
        True if a good part of the visible pixels of each is far from the colour.
    """
    behind = np.array(COLOURS[colour], np.int16)
    for patch in patches:
        pixels = np.asarray(patch.resize((_LOOK_PX, _LOOK_PX)), np.int16).reshape(-1, 4)
        visible = pixels[pixels[:, 3] > 128, :3]
        far = np.abs(visible - behind).sum(axis=1) > _FAR_COLOURS
        if not len(far) or far.mean() < _FAR_SHARE:
            return False
    return True


def _on_any_surface(names: list[Name]) -> bool:
    """Tell whether a surface might show one of the things by itself."""
    return any(name.word in words for words in SEEN_ON_SURFACES.values() for name in names)


def _weighted(names: tuple[Name, ...]) -> tuple[Name, ...]:
    return tuple(
        name for name in names for _ in range(_POPULAR_WEIGHT if is_popular(name.word) else 1)
    )


def _one_family(
    names: tuple[Name, ...], distinct: int, rng: random.Random
) -> tuple[Name, ...] | None:
    """Sometimes restrict a scene to one category, if that has enough names."""
    if distinct == 1 or rng.random() >= _FAMILY_SHARE:
        return None
    category = rng.choice(names).category
    family = tuple(name for name in names if name.category == category)
    return family if len(set(family)) >= distinct else None


def _sample(pool: tuple[Name, ...], distinct: int, rng: random.Random) -> list[Name]:
    chosen: dict[Name, None] = {}
    while len(chosen) < distinct:
        chosen[rng.choice(pool)] = None
    return list(chosen)


def _sides(plan: Split, number: int, size_px: int, rng: random.Random) -> list[int]:
    """Draw the longer side of each thing; unless they have cells, more things are smaller."""
    low, high = (share * size_px for share in plan.profile.sides)
    crowding = 1.0 if plan.profile.crowded else min(1.0, (3 / number) ** 0.5)
    return [round(rng.uniform(low, high) * crowding) for _ in range(number)]


def _patch(
    source: DrawingSource,
    name: Name,
    style: str,
    side_px: int,
    varied: float,
    rng: random.Random,
) -> Image.Image:
    patch = resized(source.drawing(name, style), side_px)
    if rng.random() < varied:
        patch = vary_style(patch, rng, may_mirror=source.may_mirror)
    return visible_crop(patch)


def _place(
    plan: Split, patches: list[Image.Image], size_px: int, rng: random.Random
) -> tuple[list[Image.Image], list[Box]]:
    if plan.profile.crowded:
        return place_in_cells(patches, size_px, _CELLS, rng)
    if len(patches) in _LINE_NUMBERS and rng.random() < _LINE_SHARE:
        return place_in_line(patches, size_px, rng)
    return place_apart(patches, size_px, rng)
