"""What can be said of places and sizes, and when it is clear enough to be asked."""

from __future__ import annotations

import itertools
import math
from collections import Counter

from vistoken.data.scenes.compose import PlacedObject, Scene

# Two centres closer than this share of the picture are called neither left nor right.
CLEAR_SHARE = 0.1
# The nearest thing must be nearer than every other by this factor; the larger one larger.
_NEARER, _LARGER = 1.3, 1.7
# A thing stands between two others near the line that joins them, away from its ends.
_ON_LINE, _NEAR_LINE = 0.2, 0.4
_PART_MARGIN = 0.035
AXES = (("left", "right"), ("above", "below"))
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def extent(thing: PlacedObject, direction: str) -> float:
    """Say how far out the centre of a thing lies, growing in the direction."""
    row, col = thing.middle
    return {"left": -col, "right": col, "above": -row, "below": row}[direction]


def is_clear(scene: Scene, one: PlacedObject, other: PlacedObject, direction: str) -> bool:
    """Tell whether two things lie apart clearly enough along an axis."""
    distance = abs(extent(one, direction) - extent(other, direction))
    return distance >= CLEAR_SHARE * scene.size_px


def single_things(scene: Scene) -> list[PlacedObject]:
    """Things whose name occurs once, so that "the cat" is one thing."""
    numbers = Counter(thing.name for thing in scene.objects)
    return [thing for thing in scene.objects if numbers[thing.name] == 1]


def extremes(scene: Scene) -> list[tuple[str, PlacedObject]]:
    """Directions in which one thing lies clearly further out than all with another name."""
    found: list[tuple[str, PlacedObject]] = []
    for direction in OPPOSITE:
        first, *rest = sorted(scene.objects, key=lambda thing: -extent(thing, direction))
        rivals = [thing for thing in rest if thing.name != first.name]
        if rivals and all(is_clear(scene, first, rival, direction) for rival in rivals):
            found.append((direction, first))
    return found


def clear_pairs(scene: Scene) -> list[tuple[tuple[PlacedObject, PlacedObject], tuple[str, str]]]:
    """Pairs of single things with an axis along which they lie clearly apart."""
    return [
        (pair, axis)
        for pair in itertools.combinations(single_things(scene), 2)
        for axis in AXES
        if is_clear(scene, *pair, axis[0])
    ]


def area(thing: PlacedObject) -> int:
    """Area of a thing's box."""
    top, left, bottom, right = thing.box
    return (bottom - top) * (right - left)


def unequal_pairs(scene: Scene) -> list[tuple[PlacedObject, PlacedObject]]:
    """Pairs of single things (larger, smaller) that differ clearly in area and in longer side."""
    found: list[tuple[PlacedObject, PlacedObject]] = []
    for pair in itertools.combinations(single_things(scene), 2):
        small, large = sorted(pair, key=area)
        sides = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) for t in (small, large)]
        if area(large) >= _LARGER * area(small) and sides[1] > sides[0]:
            found.append((large, small))
    return found


def distance(one: PlacedObject, other: PlacedObject) -> float:
    """Distance of two centres."""
    return math.dist(one.middle, other.middle)


def nearest_things(scene: Scene) -> list[tuple[PlacedObject, PlacedObject]]:
    """Single things with the thing that is clearly nearest to them."""
    found: list[tuple[PlacedObject, PlacedObject]] = []
    if len(scene.objects) < 3:
        return found
    for thing in single_things(scene):
        others = [other for other in scene.objects if other is not thing]
        first, *rest = sorted(others, key=lambda other: distance(thing, other))
        rivals = [other for other in rest if other.name != first.name]
        if rivals and distance(thing, rivals[0]) >= _NEARER * distance(thing, first):
            found.append((thing, first))
    return found


def things_between(scene: Scene) -> list[tuple[PlacedObject, PlacedObject, PlacedObject]]:
    """Single things (one, other, middle) of which only `middle` stands between the two."""
    found: list[tuple[PlacedObject, PlacedObject, PlacedObject]] = []
    for one, other in itertools.combinations(single_things(scene), 2):
        rest = [thing for thing in scene.objects if thing not in (one, other)]
        near = [t for t in rest if stands_between(t, one, other, 0.0, _NEAR_LINE)]
        if len(near) == 1 and stands_between(near[0], one, other, _ON_LINE, _ON_LINE):
            found.append((one, other, near[0]))
    return found


def stands_between(
    thing: PlacedObject, one: PlacedObject, other: PlacedObject, inside: float, aside: float
) -> bool:
    """Tell whether a centre lies between two others.

    Args:
        thing: What may stand between.
        one: One end.
        other: Other end.
        inside: Least distance from both ends along the line, as a share of its length.
        aside: Greatest distance from the line, as a share of its length.

    Returns:
        True if it does.
    """
    (row, col), (row1, col1), (row2, col2) = thing.middle, one.middle, other.middle
    down, across = row2 - row1, col2 - col1
    length = down * down + across * across
    along = ((row - row1) * down + (col - col1) * across) / length
    off = abs((row - row1) * across - (col - col1) * down) / length
    return inside <= along <= 1 - inside and off <= aside


def part_of_picture(scene: Scene, thing: PlacedObject) -> str | None:
    """Name the ninth of the picture that a centre lies in, or None near a boundary."""
    words: list[str] = []
    sides = (("top", "", "bottom"), ("left", "", "right"))
    for position, names in zip(thing.middle, sides, strict=True):
        share = position / scene.size_px
        if min(abs(share - 1 / 3), abs(share - 2 / 3)) < _PART_MARGIN:
            return None
        words.append(names[min(2, int(share * 3))])
    return " ".join(word for word in words if word) or "middle"
