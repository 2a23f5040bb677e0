"""The data card written beside the set."""

from __future__ import annotations

from collections import Counter

from vistoken.data.scenes.v1.parts import PARTS
from vistoken.data.scenes.v1.splits import SET_NAME, is_held_out_class
from vistoken.data.scenes.v1.workshop import Workshop

Statistics = dict[str, Counter[str]]

_HELD_OUT = """\
## What training does not show

- Compositions: the set of names in a scene. One in ten is kept for the val, style and cutouts-val
  splits. A scene of one object counts as well: its name never stands alone in training, but does
  occur there beside others.
- Names: one in twelve is neither shown nor spoken of in training; `classes` shows only those.
- A drawing style: `style` uses it and nothing else.
- Cut-outs: `cutouts-val` has pictures of its own, of words that training knows from others.
- Writings: one in eight; `reading-val` shows only those.
- Wordings: rows with `phrasing` "unseen" use wordings that no training row has.

Hashes of the names decide, so every seed and size agrees on it.
"""

_FIELDS = """\
## Rows

`kind` says what is asked for, `answer` is the short form of the reply. `form` is "sentence" where
the question asks for a sentence (or has no short answer), else "short". `phrasing` is "seen",
"unseen" or "written" (by hand). Where they apply: `things` (number of objects), `direction`,
`sort` (of a negative: random; popular, among the names shown most often; adversarial, of the
category of something shown, which occurs together more often than chance), `part`, `asked`,
`accepted` (all answers that count as right), `kinds` and `answers` of a conversation.
Presence has as many "yes" as "no" for every picture.
"""

_LIMITS = """\
## Limits

Composed pictures: objects stand apart on a background, without occlusion, perspective or light.
Names are English and limited to the list in names.json. All writing is in one typeface. Charts are
bars only. The photographs are few: they tell whether anything carries over, not how well.
"""


def data_card(
    workshop: Workshop,
    scenes: dict[str, int],
    source: str,
    statistics: dict[str, Statistics],
) -> str:
    """Describe the set for people.

    Args:
        workshop: The sources that were used.
        scenes: Number of pictures by split.
        source: "icons" or "shapes".
        statistics: Short answers by split and kind.

    Returns:
        Markdown.
    """
    names = workshop.icons.names
    held_out = [name.word for name in names if is_held_out_class(name.word)]
    size_px = workshop.size_px
    lines = [
        f"# {SET_NAME} ({source}, seed {workshop.seed})",
        "",
        f"Things at known places on pictures of {size_px} x {size_px} px, with questions whose "
        f"answers follow from the annotation; {len(names)} names as drawings, more as cut-outs. "
        "Only the questions about photographs are written by hand.",
        "",
        "## Splits",
        "",
        "| split | pictures | rows | content |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | {number} | {_total(statistics[name])} | {PARTS[name].note} |"
            for name, number in scenes.items()
        ),
        "",
        _HELD_OUT,
        f"Names kept out of training: {', '.join(held_out)}.",
        "",
        _FIELDS,
        "## Questions and the answer prior",
        "",
        "The prior is the share of the most common short answer: what a model reaches that "
        "ignores the picture and the question's details.",
        "",
        "| split | kind | questions | prior | most common answer |",
        "|---|---|---|---|---|",
        *_prior_rows(statistics),
        "",
        _LIMITS,
        "## Sources",
        "",
        *(
            f"- {key}: {credit.title}, {credit.author}, {credit.license} ({credit.origin})"
            for key, credit in workshop.credits.items()
        ),
        "",
        "The pictures are derived from these works and stay under their licences; CREDITS.json "
        "holds the details.",
        "",
    ]
    return "\n".join(lines)


def _total(kinds: Statistics) -> int:
    return sum(answers.total() for answers in kinds.values())


def _prior_rows(statistics: dict[str, Statistics]) -> list[str]:
    rows: list[str] = []
    for split, kinds in statistics.items():
        for kind, answers in sorted(kinds.items()):
            answer, number = answers.most_common(1)[0]
            total = answers.total()
            rows.append(f"| {split} | {kind} | {total} | {number / total:.2f} | {answer} |")
    return rows
