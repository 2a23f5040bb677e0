"""How each kind of question may be put, and the hints about the answer's form."""

from __future__ import annotations

import random

QUESTIONS: dict[str, tuple[str, ...]] = {
    "name1": (
        "What is in the picture?",
        "What does the picture show?",
        "What is the object in this image?",
        "Name the object in the picture.",
        "What do you see in the image?",
    ),
    "nameN": (
        "What is the {side} object?",
        "Which object is {side}?",
        "Name the {side} thing in the picture.",
        "What is the {side} thing in the image?",
    ),
    "presence": (
        "Is there {thing} in the picture?",
        "Does the image show {thing}?",
        "Can you see {thing} in the picture?",
        "Is {thing} visible in this image?",
    ),
    "relation": (
        "Which is {relation}, {one} or {other}?",
        "What is {relation}: {one} or {other}?",
        "Of {one} and {other}, which is {relation}?",
    ),
    "count": (
        "How many objects are in the picture?",
        "How many things does the image show?",
        "Count the objects in the picture.",
        "What is the number of objects in the image?",
    ),
    "count-of": (
        "How many {things} are in the picture?",
        "How many {things} does the image show?",
        "Count the {things} in the picture.",
        "How many {things} can you see?",
    ),
    "colour": (
        "What color is the background?",
        "What is the color of the background?",
        "Which color does the background have?",
        "Name the background color.",
    ),
    "caption": (
        "Describe the picture in one sentence.",
        "Write a short caption, from left to right.",
        "What does this image show? Answer with one sentence.",
        "Give a one-sentence description of the image.",
    ),
    "reading": (
        "What word is written in the picture?",
        "Read the word in the image.",
        "What does the text say?",
        "Which word can you read in the picture?",
    ),
}

HINTS: dict[str, tuple[str, ...]] = {
    "name1": ("Answer with its name only.", "Use one to three words.", "Answer briefly."),
    "nameN": ("Answer with its name only.", "Use one to three words.", "Answer briefly."),
    "presence": ("Answer yes or no.", "Reply with yes or no.", "Yes or no?"),
    "relation": ("Answer with one of the two.", "Answer with its name only.", "Answer briefly."),
    "count": ("Answer with one word.", "Reply with a number word."),
    "count-of": ("Answer with one word.", "Reply with a number word."),
    "colour": ("Answer with one word.", "Reply with one color word."),
    "caption": (),
    "reading": ("Answer with one word.", "Reply with the word only."),
}

SIDES: dict[str, tuple[str, ...]] = {
    "left": ("left-most", "furthest to the left"),
    "right": ("right-most", "furthest to the right"),
    "above": ("top-most", "highest"),
    "below": ("bottom-most", "lowest"),
}

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("further left", "more to the left", "on the left"),
    "right": ("further right", "more to the right", "on the right"),
    "above": ("higher up", "above", "nearer to the top"),
    "below": ("lower down", "below", "nearer to the bottom"),
}


def phrase(kind: str, rng: random.Random, **words: str) -> str:
    """Put a question in one of its wordings, half of the time with a hint about the answer.

    Args:
        kind: A key of `QUESTIONS`.
        rng: Chooses the wording and the hint.
        **words: What the wording's fields are filled with.

    Returns:
        The question.
    """
    text = rng.choice(QUESTIONS[kind]).format(**words)
    if HINTS[kind] and rng.random() < 0.5:
        text = f"{text} {rng.choice(HINTS[kind])}"
    return text
