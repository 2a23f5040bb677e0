"""The data card written beside every set of scenes."""

from __future__ import annotations

from collections import Counter

from vistoken.data.scenes.compose import SceneOptions
from vistoken.data.scenes.sources import DrawingSource

_SPLIT_NOTES = {
    "train": "training styles, drawings varied in tint, tilt, outline, blur and mirroring",
    "val": "training styles as drawn; compositions held out",
    "style": "held-out styles as drawn; compositions held out",
}


def data_card(
    drawings: DrawingSource,
    options: SceneOptions,
    scenes: dict[str, int],
    seed: int,
    statistics: dict[str, dict[str, Counter[str]]],
) -> str:
    """Describe a set for people.

    Args:
        drawings: Where the drawings come from.
        options: What all scenes share.
        scenes: Number of scenes by split.
        seed: Seed of the set.
        statistics: Answers by split and kind.

    Returns:
        Markdown.
    """
    lines = [
        f"# Composed scenes ({drawings.title}, seed {seed})",
        "",
        f"Drawings of {len(drawings.names)} named things pasted at known places on "
        f"{options.size_px} x {options.size_px} px backgrounds, with questions whose answers "
        "follow from the annotation. Synthetic: no photographs, no people.",
        "",
        "## Splits",
        "",
        *(
            f"- `{split}`: {number} scenes; {_SPLIT_NOTES[split]}."
            for split, number in scenes.items()
        ),
        "",
        "A composition is the set of names in a scene. A hash of the names assigns each "
        "composition, once and for all seeds, to training (nine in ten) or to the held-out splits "
        "(one in ten). A scene of one object counts as well: its name never stands alone in "
        "training, but does occur there beside others.",
        "",
        "## Questions and the answer prior",
        "",
        "The prior is the share of the most common answer: what a model reaches that ignores the "
        "picture and the question's details.",
        "",
        "| split | kind | questions | prior | most common answer |",
        "|---|---|---|---|---|",
        *_prior_rows(statistics),
        "",
        "## Drawings",
        "",
        *(
            f"- {style}: {credit.title}, {credit.author}, {credit.license} ({credit.origin})"
            for style, credit in drawings.credits.items()
        ),
        "",
        "The pictures are derived from these drawings and stay under their licences; "
        "CREDITS.json holds the details.",
        "",
    ]
    return "\n".join(lines)


def _prior_rows(statistics: dict[str, dict[str, Counter[str]]]) -> list[str]:
    rows: list[str] = []
    for split, kinds in statistics.items():
        for kind, answers in sorted(kinds.items()):
            answer, number = answers.most_common(1)[0]
            total = answers.total()
            rows.append(f"| {split} | {kind} | {total} | {number / total:.2f} | {answer} |")
    return rows
