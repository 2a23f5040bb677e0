"""Where things stand: places without overlap inside a square picture."""

from __future__ import annotations

import random

from PIL import Image

from vistoken.data.scenes.augment import resized, visible_crop

_GAP_SHARE = 0.015
_PLACING_TRIES = 40

Box = tuple[int, int, int, int]


def place_apart(
    patches: list[Image.Image], size_px: int, rng: random.Random
) -> tuple[list[Image.Image], list[Box]]:
    """Find places without overlap, shrinking everything a little whenever there is no room.

    Args:
        patches: What is placed.
        size_px: Height and width of the picture.
        rng: Chooses the places.

    Returns:
        The patches, perhaps smaller, and their boxes (top, left, bottom, right).
    """
    while True:
        boxes = _try_places([patch.size for patch in patches], size_px, rng)
        if boxes is not None:
            return patches, boxes
        patches = [visible_crop(resized(patch, round(0.9 * max(patch.size)))) for patch in patches]


def place_in_cells(
    patches: list[Image.Image], size_px: int, grid: tuple[int, int], rng: random.Random
) -> tuple[list[Image.Image], list[Box]]:
    """Put each patch somewhere in a cell of its own; what is too large for its cell is shrunk.

    Args:
        patches: What is placed; at most as many as there are cells.
        size_px: Height and width of the picture.
        grid: Rows and columns of cells.
        rng: Chooses the cells and the places within them.

    Returns:
        The patches and their boxes (top, left, bottom, right).
    """
    rows, cols = grid
    height, width = size_px // rows, size_px // cols
    cells = rng.sample(range(rows * cols), len(patches))
    fitted: list[Image.Image] = []
    boxes: list[Box] = []
    for patch, cell in zip(patches, cells, strict=True):
        excess = max(patch.width / (width - 2), patch.height / (height - 2), 1.0)
        if excess > 1:
            patch = visible_crop(resized(patch, int(max(patch.size) / excess)))
        top = (cell // cols) * height + rng.randint(1, height - patch.height - 1)
        left = (cell % cols) * width + rng.randint(1, width - patch.width - 1)
        fitted.append(patch)
        boxes.append((top, left, top + patch.height, left + patch.width))
    return fitted, boxes


def place_in_line(
    patches: list[Image.Image], size_px: int, rng: random.Random
) -> tuple[list[Image.Image], list[Box]]:
    """Put patches side by side in a rough row or column, so that some stand between others.

    Args:
        patches: What is placed, in the order of the line.
        size_px: Height and width of the picture.
        rng: Chooses the direction, the line's offset and each patch's distance from it.

    Returns:
        The patches and their boxes (top, left, bottom, right).
    """
    step = size_px / len(patches)
    room = int(0.9 * step)
    fitted = [
        visible_crop(resized(patch, room)) if max(patch.size) > room else patch for patch in patches
    ]
    offset = rng.uniform(0.25, 0.75) * size_px
    across_row = rng.random() < 0.5
    boxes: list[Box] = []
    for number, patch in enumerate(fitted):
        along, across = patch.size if across_row else patch.size[::-1]
        start = round(number * step + rng.uniform(0, step - along - 1))
        aside = offset - across / 2 + rng.uniform(-0.06, 0.06) * size_px
        side = min(max(1, round(aside)), size_px - across - 1)
        top, left = (side, start) if across_row else (start, side)
        boxes.append((top, left, top + patch.height, left + patch.width))
    return fitted, boxes


def _try_places(sizes: list[tuple[int, int]], size_px: int, rng: random.Random) -> list[Box] | None:
    gap = max(2, round(_GAP_SHARE * size_px))
    boxes: dict[int, Box] = {}
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i][0] * sizes[i][1]):
        width, height = sizes[place]
        for _ in range(_PLACING_TRIES):
            top = rng.randint(1, max(1, size_px - height - 1))
            left = rng.randint(1, max(1, size_px - width - 1))
            box = (top, left, top + height, left + width)
            if max(box) < size_px and not any(_near(box, other, gap) for other in boxes.values()):
                boxes[place] = box
                break
        else:
            return None
    return [boxes[place] for place in range(len(sizes))]


def _near(one: Box, other: Box, gap: int) -> bool:
    return (
        one[0] < other[2] + gap
        and other[0] < one[2] + gap
        and one[1] < other[3] + gap
        and other[1] < one[3] + gap
    )
