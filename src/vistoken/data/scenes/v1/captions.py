"""Captions of one, two or three sentences."""

from __future__ import annotations

from collections import Counter

from vistoken.data.scenes.backgrounds import COLOURS
from vistoken.data.scenes.compose import Scene
from vistoken.data.scenes.grammar import (
    NUMBER_WORDS,
    joined,
    plural,
    with_article,
    with_definite_article,
)
from vistoken.data.scenes.v1.asker import Asker, Question
from vistoken.data.scenes.v1.geometry import clear_pairs, extent
from vistoken.data.scenes.v1.wordings import BESIDE

_MOST_THINGS = 5


def ask_caption(scene: Scene, asker: Asker) -> list[Question]:
    """Ask for a caption of one to three sentences; crowded scenes get none."""
    if len(scene.objects) > _MOST_THINGS:
        return []
    relation = _relation(scene, asker)
    longest = 3 if relation else 2
    sentences = asker.rng.randint(1, longest)
    things = things_from_left(scene)
    if sentences == 1:
        text = f"{things[0].upper()}{things[1:]} {_on_background(scene.background)}."
    else:
        text = f"The picture shows {things}."
        text += f" {relation}" if sentences == 3 else ""
        text += f" The background is {scene.background}."
    return [asker.put(f"caption-{sentences}", text)]


def _on_background(word: str) -> str:
    if word in COLOURS:
        return f"on {'an' if word == 'orange' else 'a'} {word} background"
    return f"in front of {word}"


def things_from_left(scene: Scene) -> str:
    """List what is shown from left to right, equal things together."""
    ordered = sorted(scene.objects, key=lambda thing: thing.middle[1])
    numbers = Counter(thing.name for thing in ordered)
    return joined(
        [
            with_article(name) if number == 1 else f"{NUMBER_WORDS[number]} {plural(name.word)}"
            for name, number in numbers.items()
        ]
    )


def _relation(scene: Scene, asker: Asker) -> str:
    options = clear_pairs(scene)
    if not options:
        return ""
    (one, other), axis = asker.rng.choice(options)
    direction = axis[0] if extent(one, axis[0]) > extent(other, axis[0]) else axis[1]
    first, second = with_definite_article(one.name), with_definite_article(other.name)
    return f"{first.capitalize()} is {BESIDE[direction][0]} {second}."
