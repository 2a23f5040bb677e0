"""The data card written beside the set."""

from __future__ import annotations

from collections import Counter

from vistoken.data.scenes.sources import DrawingSource
from vistoken.data.scenes.v1.splits import SET_NAME, SPLITS, is_held_out_class


def data_card(
    drawings: DrawingSource,
    scenes: dict[str, int],
    seed: int,
    size_px: int,
    statistics: dict[str, dict[str, Counter[str]]],
) -> str:
    """Describe the set for people.

    Args:
        drawings: Where the drawings come from.
        scenes: Number of scenes by split.
        seed: Seed of the set.
        size_px: Height and width of the pictures.
        statistics: Short answers by split and kind.

    Returns:
        Markdown.
    """
    held_out = [name.word for name in drawings.names if is_held_out_class(name.word)]
    lines = [
        f"# {SET_NAME} ({drawings.title}, seed {seed})",
        "",
        f"Drawings of {len(drawings.names)} named things at known places on {size_px} x "
        f"{size_px} px backgrounds, with questions whose answers follow from the annotation.",
        "",
        "## Splits",
        "",
        *(f"- `{name}`: {number} scenes; {SPLITS[name].note}." for name, number in scenes.items()),
        "",
        "A composition is the set of names in a scene. Hashes of the names, the same for every "
        "seed and size, keep one composition in ten and one name in twelve out of training.",
        "",
        f"Names kept out of training: {', '.join(held_out)}.",
        "",
        "## Questions and the answer prior",
        "",
        "The prior is the share of the most common short answer: what a model reaches that "
        "ignores the picture and the question's details.",
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
