"""Ask about a scene of vistoken-scenes 1: every answer follows from the annotation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from vistoken.data.scenes.backgrounds import COLOURS
from vistoken.data.scenes.compose import Scene
from vistoken.data.scenes.grammar import (
    NUMBER_WORDS,
    is_countable,
    plural,
    with_article,
    with_definite_article,
)
from vistoken.data.scenes.names import Name
from vistoken.data.scenes.v1.asker import Asker, Question
from vistoken.data.scenes.v1.captions import ask_caption
from vistoken.data.scenes.v1.geometry import extremes, part_of_picture, single_things
from vistoken.data.scenes.v1.negatives import SORTS, Vocabulary, absent_name
from vistoken.data.scenes.v1.relations import (
    ask_between,
    ask_nearest,
    ask_relation_check,
    ask_size,
    ask_which_of_two,
)
from vistoken.data.scenes.v1.wordings import FURTHEST, SIDES

KINDS = (
    "name1",
    "nameN",
    "presence",
    "relation",
    "relation-check",
    "between",
    "nearest",
    "size",
    "count",
    "count-of",
    "colour",
    "absent",
    "where",
    "caption-1",
    "caption-2",
    "caption-3",
)

_SECOND_PRESENCE_SHARE = 0.3
_CHECK_SHARE = 0.45
_BETWEEN_SHARE = 0.8
_NEAREST_SHARE = 0.6
_SIZE_SHARE = 0.8
_COUNT_OF_SHARE = 0.6
_COLOUR_SHARE = 0.25
_ABSENT_SHARE = 0.25
_CAPTION_SHARE = 0.35
_MOST_PLACES = 12


def ask(scene: Scene, vocabulary: Vocabulary, asker: Asker) -> list[Question]:
    """Ask about eight to twelve questions about a scene.

    Args:
        scene: What is asked about.
        vocabulary: Names that may be asked for.
        asker: Puts the questions; its random numbers choose what is asked.

    Returns:
        Questions in random order.
    """
    rng = asker.rng
    if len(scene.objects) == 1:
        questions = _name_only_object(scene, asker)
    else:
        questions = _name_extremes(scene, asker) + ask_which_of_two(scene, asker)
    questions += _presence(scene, vocabulary, asker)
    questions += ask_count(scene, asker)
    for share, group in (
        (_CHECK_SHARE, ask_relation_check),
        (_BETWEEN_SHARE, ask_between),
        (_NEAREST_SHARE, ask_nearest),
        (_SIZE_SHARE, ask_size),
        (_COLOUR_SHARE, _colour),
        (_CAPTION_SHARE, ask_caption),
    ):
        if rng.random() < share:
            questions += group(scene, asker)
    if rng.random() < _COUNT_OF_SHARE:
        questions += _count_of(scene, vocabulary, asker)
    if rng.random() < _ABSENT_SHARE:
        questions += _absent_and_where(scene, vocabulary, asker)
    rng.shuffle(questions)
    return questions


def ask_tiny(scene: Scene, vocabulary: Vocabulary, asker: Asker) -> list[Question]:
    """Ask what suits a scene of tiny things; all of it is of the kind "small"."""
    if len(scene.objects) == 1:
        questions = _name_only_object(scene, asker)[:1]
    else:
        questions = _name_extremes(scene, asker)[:2]
    questions += _presence(scene, vocabulary, asker) + ask_count(scene, asker)
    questions += _absent_and_where(scene, vocabulary, asker)
    asker.rng.shuffle(questions)
    return [
        replace(question, kind="small", facts={**question.facts, "asked": question.kind})
        for question in questions
    ]


def ask_places(scene: Scene, vocabulary: Vocabulary, asker: Asker) -> list[Question]:
    """Ask where things are, which of two lies where, and how many there are; no text twice.

    Args:
        scene: What is asked about.
        vocabulary: Names that may be asked for.
        asker: Puts the questions; its random numbers choose what is asked.

    Returns:
        At most twelve questions in random order.
    """
    asked = [
        question
        for _ in range(3)
        for question in _absent_and_where(scene, vocabulary, asker)
        if question.kind == "where"
    ]
    if len(scene.objects) == 1:
        asked += _name_only_object(scene, asker)
    else:
        for group in (ask_which_of_two, ask_which_of_two, ask_relation_check, ask_relation_check):
            asked += group(scene, asker)
        for group in (ask_nearest, ask_between, ask_size, _name_extremes):
            asked += group(scene, asker)
    asked += ask_count(scene, asker) + _count_of(scene, vocabulary, asker)
    first = {question.text: number for number, question in reversed(list(enumerate(asked)))}
    questions = [
        question for number, question in enumerate(asked) if first[question.text] == number
    ]
    asker.rng.shuffle(questions)
    return questions[:_MOST_PLACES]


def ask_count(scene: Scene, asker: Asker) -> list[Question]:
    """Ask how many things there are."""
    number = len(scene.objects)
    things = "object" if number == 1 else "objects"
    said = _there_are(number, f"{NUMBER_WORDS[number]} {things}")
    return [asker.put("count", NUMBER_WORDS[number], said=said)]


def _there_are(number: int, what: str) -> str:
    return f"There {'is' if number == 1 else 'are'} {what} in the picture."


def _name_only_object(scene: Scene, asker: Asker) -> list[Question]:
    name = scene.objects[0].name
    return [asker.put("name1", name.word, said=with_article(name)) for _ in range(2)]


def _name_extremes(scene: Scene, asker: Asker) -> list[Question]:
    clear = extremes(scene)
    asked = asker.rng.sample(clear, min(len(clear), 2 if len(scene.objects) == 2 else 3))
    return [
        asker.put(
            "nameN",
            thing.name.word,
            facts={"direction": direction},
            side=asker.rng.choice(SIDES[direction]),
            furthest=asker.rng.choice(FURTHEST[direction]),
        )
        for direction, thing in asked
    ]


def _colour(scene: Scene, asker: Asker) -> list[Question]:
    if scene.background not in COLOURS:
        return []
    return [asker.put("colour", scene.background)]


def _presence(scene: Scene, vocabulary: Vocabulary, asker: Asker) -> list[Question]:
    shown = list(dict.fromkeys(thing.name for thing in scene.objects))
    wanted = 2 if len(shown) > 1 and asker.rng.random() < _SECOND_PRESENCE_SHARE else 1
    questions = [
        asker.put(
            "presence",
            "yes",
            facts={"sort": "shown"},
            thing=with_article(name),
            said=f"Yes, there is {with_article(name)} in the picture.",
        )
        for name in asker.rng.sample(shown, wanted)
    ]
    absent: list[Name] = []
    for wanted_sort in asker.rng.sample(SORTS, wanted):
        name, sort = absent_name(scene, vocabulary, absent, wanted_sort, asker.rng)
        absent.append(name)
        questions.append(
            asker.put(
                "presence",
                "no",
                facts={"sort": sort},
                thing=with_article(name),
                said=f"No, there is no {name.word} in the picture.",
            )
        )
    return questions


def _count_of(scene: Scene, vocabulary: Vocabulary, asker: Asker) -> list[Question]:
    rng = asker.rng
    numbers = Counter(thing.name for thing in scene.objects if is_countable(thing.name))
    repeated = [name for name, number in numbers.items() if number > 1]
    # "one" would be the answer three times in four; repeated and absent things even that out.
    if repeated and rng.random() < 0.8:
        name = rng.choice(repeated)
    elif numbers and rng.random() < 0.55:
        name = rng.choice(list(numbers))
    else:
        name, _ = absent_name(scene, vocabulary, [], rng.choice(SORTS), rng)
        if not is_countable(name):
            return []
    number, things = numbers[name], plural(name.word)
    if number == 0:
        said = _there_are(number, f"no {things}")
    else:
        said = _there_are(number, f"{NUMBER_WORDS[number]} {name.word if number == 1 else things}")
    return [asker.put("count-of", NUMBER_WORDS[number], things=things, said=said)]


def _absent_and_where(scene: Scene, vocabulary: Vocabulary, asker: Asker) -> list[Question]:
    """Ask after a thing that is not there and, in the same words, after one that is."""
    sort = asker.rng.choice(SORTS)
    name, sort = absent_name(scene, vocabulary, [], sort, asker.rng)
    questions = [
        asker.put(
            "absent",
            f"There is no {name.word} in the picture.",
            facts={"sort": sort},
            thing=with_definite_article(name),
        )
    ]
    placed = [
        (thing, part)
        for thing in single_things(scene)
        if (part := part_of_picture(scene, thing)) is not None
    ]
    if placed:
        thing, part = asker.rng.choice(placed)
        said = with_definite_article(thing.name).capitalize()
        questions.append(
            asker.put(
                "where",
                f"{said} is at the {part} of the picture."
                if part != "middle"
                else f"{said} is in the middle of the picture.",
                facts={"part": part},
                thing=with_definite_article(thing.name),
            )
        )
    return questions
