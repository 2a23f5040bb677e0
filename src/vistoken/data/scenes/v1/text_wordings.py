"""How questions about writing and charts are put."""

from __future__ import annotations

from vistoken.data.scenes.v1.wording import NUMBER_HINTS, YES_NO_HINTS, Wording

TEXT_AND_CHART_WORDINGS: dict[str, Wording] = {
    "reading-word": Wording(
        (
            "What word is written in the picture?",
            "Read the word in the image.",
            "What does the text say?",
            "Which word can you read in the picture?",
        ),
        ("Spell out the word that is shown.",),
        ("Answer with one word.", "Reply with the word only.", "Answer in one word."),
        'The word is "{answer}".',
    ),
    "reading-number": Wording(
        (
            "What number is written in the picture?",
            "Read the number in the image.",
            "What does the text say?",
            "Which number can you read in the picture?",
        ),
        ("Write down the number that is shown.",),
        ("Reply with the number only.", "Answer briefly."),
        "The number is {answer}.",
    ),
    "reading-sign": Wording(
        (
            "What does the sign say?",
            "Read the sign in the image.",
            "What is written on the sign?",
            "Which words are on the sign?",
        ),
        ("Write down the text of the sign.",),
        ("Reply with the text only.", "Answer briefly."),
        'The sign says "{answer}".',
    ),
    "reading-side": Wording(
        (
            "What does the text at the {side} say?",
            "Read the text at the {side} of the picture.",
            "What is written at the {side}?",
        ),
        ("Write down the text that is nearest to the {side} edge.",),
        ("Reply with the text only.", "Answer briefly."),
        'The text at the {side} says "{answer}".',
    ),
    "reading-check": Wording(
        (
            'Does the picture say "{text}"?',
            'Is "{text}" written in the image?',
            'Can you read "{text}" in the picture?',
        ),
        ('Would you find "{text}" written here?',),
        YES_NO_HINTS,
        "{said}",
    ),
    "chart-highest": Wording(
        (
            "Which bar is the highest?",
            "What color is the tallest bar?",
            "Which bar has the largest value?",
        ),
        ("Name the color of the bar that beats all others.",),
        ("Answer with one color word.", "Answer in one word."),
        "The {answer} bar is the highest.",
    ),
    "chart-lowest": Wording(
        (
            "Which bar is the lowest?",
            "What color is the shortest bar?",
            "Which bar has the smallest value?",
        ),
        ("Name the color of the bar that all others beat.",),
        ("Answer with one color word.", "Answer in one word."),
        "The {answer} bar is the lowest.",
    ),
    "chart-value": Wording(
        (
            "What is the value of the {bar} bar?",
            "How high is the {bar} bar?",
            "Which value does the {bar} bar have?",
        ),
        ("Up to which number does the {bar} bar reach?",),
        NUMBER_HINTS,
        "The value of the {bar} bar is {answer}.",
    ),
    "chart-compare": Wording(
        (
            "Which bar is higher, the {one} one or the {other} one?",
            "Of the {one} bar and the {other} bar, which is taller?",
            "Which has the larger value: the {one} bar or the {other} bar?",
        ),
        ("Compare the {one} bar with the {other} bar. Which is higher?",),
        ("Answer with one color word.", "Answer in one word."),
        "The {answer} bar is higher.",
    ),
    "chart-number": Wording(
        (
            "How many bars does the chart have?",
            "How many bars are there?",
            "Count the bars of the chart.",
        ),
        ("What is the number of bars drawn here?",),
        NUMBER_HINTS,
        "The chart has {answer} bars.",
    ),
}
