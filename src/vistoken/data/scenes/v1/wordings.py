"""How the questions of vistoken-scenes 1 are put, and how they are answered in a sentence."""

from __future__ import annotations

from vistoken.data.scenes.v1.text_wordings import TEXT_AND_CHART_WORDINGS
from vistoken.data.scenes.v1.wording import (
    CHOICE_HINTS,
    NAME_HINTS,
    NUMBER_HINTS,
    YES_NO_HINTS,
    Wording,
)

WORDINGS: dict[str, Wording] = {
    "name1": Wording(
        (
            "What is in the picture?",
            "What does the picture show?",
            "What is the object in this image?",
            "Name the object in the picture.",
            "What do you see in the image?",
            "What is this?",
            "Tell me what this image shows.",
            "Which object is shown here?",
        ),
        (
            "What can be seen here?",
            "Identify the thing in this picture.",
            "What has been drawn in the image?",
        ),
        NAME_HINTS,
        "The picture shows {said}.",
    ),
    "nameN": Wording(
        (
            "What is the {side} object?",
            "Which object is {furthest}?",
            "Name the {side} thing in the picture.",
            "What is the {side} thing in the image?",
            "Which thing is {furthest} in this picture?",
            "Tell me which object is {furthest}.",
        ),
        ("Identify the {side} item.", "Which of the things shown is the {side} one?"),
        NAME_HINTS,
        "The {side} object is the {answer}.",
    ),
    "presence": Wording(
        (
            "Is there {thing} in the picture?",
            "Does the image show {thing}?",
            "Can you see {thing} in the picture?",
            "Is {thing} visible in this image?",
            "Do you see {thing}?",
            "Does this picture contain {thing}?",
        ),
        ("Would you find {thing} here?", "Has {thing} been drawn in this image?"),
        YES_NO_HINTS,
        "{said}",
    ),
    "relation": Wording(
        (
            "Which is {relation}, {one} or {other}?",
            "What is {relation}: {one} or {other}?",
            "Of {one} and {other}, which is {relation}?",
            "Tell me which is {relation}, {one} or {other}.",
            "{one} or {other}: which one is {relation}?",
        ),
        ("Compare {one} and {other}. Which is {relation}?", "Is {one} or {other} {relation}?"),
        CHOICE_HINTS,
        "The {answer} is {relation}.",
    ),
    "relation-check": Wording(
        (
            "Is {one} {beside} {other}?",
            "In this picture, is {one} {beside} {other}?",
            "Do you see {one} {beside} {other}?",
        ),
        ("Would you say that {one} is {beside} {other}?",),
        YES_NO_HINTS,
        "{said}",
    ),
    "between": Wording(
        (
            "Which object is between {one} and {other}?",
            "What is between {one} and {other}?",
            "Name the thing between {one} and {other}.",
        ),
        ("What stands in the middle of {one} and {other}?",),
        NAME_HINTS,
        "The {answer} is between {one} and {other}.",
    ),
    "nearest": Wording(
        (
            "Which object is nearest to {one}?",
            "What is closest to {one}?",
            "Name the thing that is nearest to {one}.",
            "Which thing is closest to {one}?",
        ),
        ("What lies the least far from {one}?",),
        NAME_HINTS,
        "The {answer} is nearest to {one}.",
    ),
    "size": Wording(
        (
            "Which is {size}, {one} or {other}?",
            "What is {size}: {one} or {other}?",
            "Of {one} and {other}, which is {size}?",
            "Which one looks {size}, {one} or {other}?",
        ),
        ("Compare {one} and {other}. Which is {size}?",),
        CHOICE_HINTS,
        "The {answer} is {size}.",
    ),
    "count": Wording(
        (
            "How many objects are in the picture?",
            "How many things does the image show?",
            "Count the objects in the picture.",
            "What is the number of objects in the image?",
            "How many objects do you see?",
            "How many things are there?",
        ),
        ("What is the total number of things here?", "How many items can be counted?"),
        NUMBER_HINTS,
        "{said}",
    ),
    "count-of": Wording(
        (
            "How many {things} are in the picture?",
            "How many {things} does the image show?",
            "Count the {things} in the picture.",
            "How many {things} can you see?",
            "How many {things} are there?",
        ),
        ("What is the number of {things} here?",),
        NUMBER_HINTS,
        "{said}",
    ),
    "colour": Wording(
        (
            "What color is the background?",
            "What is the color of the background?",
            "Which color does the background have?",
            "Name the background color.",
            "What is the background color of this image?",
        ),
        ("In which color is the background painted?",),
        ("Answer with one word.", "Reply with one color word.", "Answer in one word."),
        "The background is {answer}.",
    ),
    "absent": Wording(
        (
            "What is {thing} like?",
            "Where is {thing}?",
            "Describe {thing} in the picture.",
            "Tell me about {thing} in this image.",
            "In which part of the picture is {thing}?",
        ),
        ("What can you say about {thing}?", "Point out {thing} in the image."),
    ),
    "caption-1": Wording(
        (
            "Describe the picture in one sentence.",
            "Write a short caption, from left to right.",
            "What does this image show? Answer with one sentence.",
            "Give a one-sentence description of the image.",
        ),
        ("Sum up the image in a single sentence.",),
    ),
    "caption-2": Wording(
        (
            "Describe the picture in two sentences.",
            "Write two sentences about this image.",
            "Give a description of the image in two sentences.",
        ),
        ("Use two sentences to tell what is shown.",),
    ),
    "caption-3": Wording(
        (
            "Describe the picture in three sentences.",
            "Write three sentences about this image.",
            "Give a description of the image in three sentences.",
        ),
        ("Use three sentences to tell what is shown.",),
    ),
}
# A thing that is there is asked for in the same words as one that is not.
WORDINGS["where"] = WORDINGS["absent"]
WORDINGS |= TEXT_AND_CHART_WORDINGS

SIDES: dict[str, tuple[str, ...]] = {
    "left": ("left-most", "leftmost"),
    "right": ("right-most", "rightmost"),
    "above": ("top-most", "highest"),
    "below": ("bottom-most", "lowest"),
}

FURTHEST: dict[str, tuple[str, ...]] = {
    "left": ("furthest to the left", "nearest to the left edge"),
    "right": ("furthest to the right", "nearest to the right edge"),
    "above": ("highest", "nearest to the top"),
    "below": ("lowest", "nearest to the bottom"),
}

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("further left", "more to the left", "on the left"),
    "right": ("further right", "more to the right", "on the right"),
    "above": ("higher up", "above", "nearer to the top"),
    "below": ("lower down", "below", "nearer to the bottom"),
}

BESIDE: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}

SIZES: dict[str, tuple[str, ...]] = {"larger": ("larger", "bigger"), "smaller": ("smaller",)}
