"""Ask about a scene: every answer follows from its annotation."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass

from vistoken.data.scenes.compose import PlacedObject, Scene
from vistoken.data.scenes.grammar import (
    NUMBER_WORDS,
    is_countable,
    joined,
    plural,
    with_article,
    with_definite_article,
)
from vistoken.data.scenes.names import Name
from vistoken.data.scenes.phrasings import RELATIONS, SIDES, phrase
from vistoken.data.scenes.sources import DrawingSource

KINDS = (
    "name1",
    "nameN",
    "presence",
    "relation",
    "count",
    "count-of",
    "colour",
    "caption",
    "reading",
)

# Two centres closer than this share of the picture are called neither left nor right.
CLEAR_SHARE = 0.08
_DIRECTIONS = ("left", "right", "above", "below")
_AXES = (("left", "right"), ("above", "below"))

_SECOND_PRESENCE_SHARE = 0.3
_COUNT_OF_SHARE = 0.65
_COLOUR_SHARE = 0.35
_CAPTION_SHARE = 0.5


@dataclass(frozen=True)
class Question:
    """One question with its short, lower-case answer."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, source: DrawingSource, rng: random.Random) -> list[Question]:
    """Ask about eight to ten questions about a scene.

    Args:
        scene: What is asked about.
        source: Supplies the names of absent things.
        rng: Chooses questions and wordings.

    Returns:
        Questions in random order.
    """
    if len(scene.objects) == 1:
        questions = _name_only_object(scene, rng)
    else:
        questions = _name_extremes(scene, rng) + _which_of_two(scene, rng)
    questions += _presence(scene, source, rng)
    questions += _count(scene, rng)
    if rng.random() < _COUNT_OF_SHARE:
        questions += _count_of(scene, source, rng)
    if rng.random() < _COLOUR_SHARE:
        questions.append(Question("colour", phrase("colour", rng), scene.background))
    if rng.random() < _CAPTION_SHARE:
        questions.append(Question("caption", phrase("caption", rng), caption(scene)))
    if scene.text is not None:
        questions.append(Question("reading", phrase("reading", rng), scene.text.word))
    rng.shuffle(questions)
    return questions


def extent(thing: PlacedObject, direction: str) -> float:
    """Say how far out the centre of a thing lies, growing in the direction."""
    row, col = thing.middle
    return {"left": -col, "right": col, "above": -row, "below": row}[direction]


def caption(scene: Scene) -> str:
    """Describe a scene in one sentence; things come from left to right, equal ones together."""
    ordered = sorted(scene.objects, key=lambda thing: thing.middle[1])
    numbers = Counter(thing.name for thing in ordered)
    parts = [
        with_article(name) if number == 1 else f"{NUMBER_WORDS[number]} {plural(name.word)}"
        for name, number in numbers.items()
    ]
    colour = scene.background
    return f"{joined(parts)} on {'an' if colour == 'orange' else 'a'} {colour} background."


def _name_only_object(scene: Scene, rng: random.Random) -> list[Question]:
    word = scene.objects[0].name.word
    return [Question("name1", phrase("name1", rng), word) for _ in range(2)]


def _name_extremes(scene: Scene, rng: random.Random) -> list[Question]:
    clear: list[tuple[str, str]] = []
    for direction in _DIRECTIONS:
        first, *rest = sorted(scene.objects, key=lambda thing: -extent(thing, direction))
        rivals = [thing for thing in rest if thing.name != first.name]
        if rivals and all(_is_clear(scene, first, rival, direction) for rival in rivals):
            clear.append((direction, first.name.word))
    asked = rng.sample(clear, min(len(clear), 2 if len(scene.objects) == 2 else 3))
    return [
        Question("nameN", phrase("nameN", rng, side=rng.choice(SIDES[direction])), word)
        for direction, word in asked
    ]


def _which_of_two(scene: Scene, rng: random.Random) -> list[Question]:
    numbers = Counter(thing.name for thing in scene.objects)
    single = [thing for thing in scene.objects if numbers[thing.name] == 1]
    options = [
        (pair, axis)
        for pair in itertools.combinations(single, 2)
        for axis in _AXES
        if _is_clear(scene, *pair, axis[0])
    ]
    asked = rng.sample(options, min(len(options), 2 if len(scene.objects) == 2 else 4))
    questions: list[Question] = []
    for pair, axis in asked:
        direction = rng.choice(axis)
        one, other = rng.sample(pair, 2)
        text = phrase(
            "relation",
            rng,
            relation=rng.choice(RELATIONS[direction]),
            one=with_definite_article(one.name),
            other=with_definite_article(other.name),
        )
        winner = max(pair, key=lambda thing: extent(thing, direction))
        questions.append(Question("relation", text, winner.name.word))
    return questions


def _presence(scene: Scene, source: DrawingSource, rng: random.Random) -> list[Question]:
    shown = list(dict.fromkeys(thing.name for thing in scene.objects))
    wanted = 2 if len(shown) > 1 and rng.random() < _SECOND_PRESENCE_SHARE else 1
    pairs = [(name, "yes") for name in rng.sample(shown, wanted)]
    absent: list[Name] = []
    for _ in range(wanted):
        absent.append(_absent(shown, absent, source, rng))
    pairs += [(name, "no") for name in absent]
    return [
        Question("presence", phrase("presence", rng, thing=with_article(name)), answer)
        for name, answer in pairs
    ]


def _count(scene: Scene, rng: random.Random) -> list[Question]:
    return [Question("count", phrase("count", rng), NUMBER_WORDS[len(scene.objects)])]


def _count_of(scene: Scene, source: DrawingSource, rng: random.Random) -> list[Question]:
    numbers = Counter(thing.name for thing in scene.objects if is_countable(thing.name))
    repeated = [name for name, number in numbers.items() if number > 1]
    # "one" would be the answer three times in four; repeated and absent things even that out.
    if repeated and rng.random() < 0.8:
        name = rng.choice(repeated)
    elif numbers and rng.random() < 0.55:
        name = rng.choice(list(numbers))
    else:
        name = _absent([thing.name for thing in scene.objects], [], source, rng)
        if not is_countable(name):
            return []
    text = phrase("count-of", rng, things=plural(name.word))
    return [Question("count-of", text, NUMBER_WORDS[numbers[name]])]


def _absent(
    shown: list[Name], taken: list[Name], source: DrawingSource, rng: random.Random
) -> Name:
    """Draw a name that is surely not shown, half of the time from the family of one that is."""
    excluded = {name.word for name in (*shown, *taken)}
    for name in shown:
        excluded |= source.confusable.get(name.word, frozenset())
    category = rng.choice(shown).category if rng.random() < 0.5 else None
    candidates = [name for name in source.names if name.word not in excluded]
    near = [name for name in candidates if name.category == category]
    return rng.choice(near or candidates)


def _is_clear(scene: Scene, one: PlacedObject, other: PlacedObject, direction: str) -> bool:
    distance = abs(extent(one, direction) - extent(other, direction))
    return distance >= CLEAR_SHARE * scene.size_px
