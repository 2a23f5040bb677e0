"""The accuracy table of a model card, kept between two marks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table -->", "<!-- /table -->"
TITLES = {
    "val": "Held-out compositions of known drawings",
    "style": "Drawings in a held-out style",
    "classes": "Things whose names training never showed or spoke of",
    "photographs": "Photographs, questions written by hand",
}
HEADER = (
    "| Question | n | nano | nano, grey picture | answer prior | nano minus grey |\n"
    "| --- | --: | --: | --: | --: | --: |"
)
LEGEND = (
    "Exact match of the greedy answer in percent, [95 % bootstrap interval over pictures]. Grey: "
    "the same model shown a uniform grey picture of the same size. Prior: the most common training "
    "answer of the kind. Naming: `name1` and `nameN` together. Made by "
    "`benchmarks/nano_accuracy.py`."
)


def table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracies of every split in Markdown."""
    parts = [LEGEND]
    for split, rows in splits.items():
        pictures = rows["all"]["pictures"]
        lines = [f"**{TITLES.get(split, split)}** (`{split}`, {pictures} pictures)", "", HEADER]
        lines += [_line(kind, row) for kind, row in rows.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write_table(card: Path, splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Put the table between the marks of a card and return it; a card that is absent is begun."""
    return write_between(card, table(splits))


def write_between(card: Path, made: str) -> str:
    """Put text between the marks of a card and return it; a card that is absent is begun."""
    text = card.read_text(encoding="utf-8") if card.exists() else f"# nano\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{card} lacks the marks {BEGIN} and {END}; add both where the table goes")
    partial = card.with_suffix(".partial")
    partial.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
    os.replace(partial, card)
    return made


def _line(kind: str, row: Mapping[str, Any]) -> str:
    grey, minus = "", ""
    if "grey" in row:
        few = "" if row["grey_n"] == row["n"] else f" (n {row['grey_n']})"
        grey = _percent(row["grey"]) + few
        minus = _percent(row["model_minus_grey"], sign="+")
    shown = [_percent(row["model"]), grey, f"{100 * row['prior']['value']:.1f}", minus]
    return f"| {kind} | {row['n']} | " + " | ".join(shown) + " |"


def _percent(estimate: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.0f}, {high:{sign}.0f}]"
