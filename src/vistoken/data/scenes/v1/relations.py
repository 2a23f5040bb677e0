"""Questions about two or three things: where they stand, how near and how large they are."""

from __future__ import annotations

from vistoken.data.scenes.compose import PlacedObject, Scene
from vistoken.data.scenes.grammar import with_definite_article
from vistoken.data.scenes.v1.asker import Asker, Question
from vistoken.data.scenes.v1.geometry import (
    OPPOSITE,
    clear_pairs,
    extent,
    nearest_things,
    things_between,
    unequal_pairs,
)
from vistoken.data.scenes.v1.wordings import BESIDE, RELATIONS, SIZES


def ask_which_of_two(scene: Scene, asker: Asker) -> list[Question]:
    """Ask which of two things is further out in a direction, for some pairs."""
    options = clear_pairs(scene)
    asked = asker.rng.sample(options, min(len(options), 2 if len(scene.objects) == 2 else 3))
    questions: list[Question] = []
    for pair, axis in asked:
        direction = asker.rng.choice(axis)
        winner = max(pair, key=lambda thing: extent(thing, direction))
        questions.append(
            asker.put(
                "relation",
                winner.name.word,
                facts={"direction": direction},
                relation=asker.rng.choice(RELATIONS[direction]),
                **_in_random_order(pair, asker),
            )
        )
    return questions


def ask_relation_check(scene: Scene, asker: Asker) -> list[Question]:
    """Ask whether one thing is on a certain side of another: yes or no."""
    options = clear_pairs(scene)
    if not options:
        return []
    pair, axis = asker.rng.choice(options)
    asked = asker.rng.choice(axis)
    one, other = asker.rng.sample(pair, 2)
    is_so = extent(one, asked) > extent(other, asked)
    true = asked if is_so else OPPOSITE[asked]
    first, second = with_definite_article(one.name), with_definite_article(other.name)
    answer = "yes" if is_so else "no"
    return [
        asker.put(
            "relation-check",
            answer,
            facts={"direction": asked},
            one=first,
            other=second,
            beside=asker.rng.choice(BESIDE[asked]),
            said=f"{answer.capitalize()}, {first} is {BESIDE[true][0]} {second}.",
        )
    ]


def ask_between(scene: Scene, asker: Asker) -> list[Question]:
    """Ask what stands between two things."""
    options = things_between(scene)
    if not options:
        return []
    one, other, middle = asker.rng.choice(options)
    ends = _in_random_order((one, other), asker)
    return [asker.put("between", middle.name.word, one=ends["one"], other=ends["other"])]


def ask_nearest(scene: Scene, asker: Asker) -> list[Question]:
    """Ask what is nearest to a thing."""
    options = nearest_things(scene)
    if not options:
        return []
    thing, nearest = asker.rng.choice(options)
    return [asker.put("nearest", nearest.name.word, one=with_definite_article(thing.name))]


def ask_size(scene: Scene, asker: Asker) -> list[Question]:
    """Ask which of two things is larger or smaller."""
    options = unequal_pairs(scene)
    if not options:
        return []
    large, small = asker.rng.choice(options)
    wanted = asker.rng.choice(tuple(SIZES))
    winner = large if wanted == "larger" else small
    return [
        asker.put(
            "size",
            winner.name.word,
            facts={"direction": wanted},
            size=asker.rng.choice(SIZES[wanted]),
            **_in_random_order((large, small), asker),
        )
    ]


def _in_random_order(pair: tuple[PlacedObject, PlacedObject], asker: Asker) -> dict[str, str]:
    one, other = asker.rng.sample(pair, 2)
    return {
        "one": with_definite_article(one.name),
        "other": with_definite_article(other.name),
    }
