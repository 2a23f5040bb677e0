"""Accuracies by kind of question, with intervals, beside the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vistoken.eval.records import Record
from vistoken.eval.scoring import bootstrap_mean

ALL = "all"


def summarise(
    records: Sequence[Record], groups: Mapping[str, Sequence[str]] | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Rows of a table: every kind, groups of kinds, and all.

    Args:
        records: Answered questions of one task.
        groups: Name of a further row -> its kinds; a row without questions is left out.
        seed: Seed of the bootstrap over pictures.

    Returns:
        Name -> ``n``, ``pictures``, and ``value``, ``low``, ``high`` of ``model``, ``prior``,
        ``model_minus_prior`` and, of the ``grey_n`` questions that were also asked about a grey
        picture, ``grey`` and ``model_minus_grey``.
    """
    kinds = {kind: (kind,) for kind in sorted({record.kind for record in records})}
    named: dict[str, Sequence[str]] = {**kinds, **(groups or {}), ALL: tuple(kinds)}
    table = {}
    for name, members in named.items():
        chosen = [record for record in records if record.kind in members]
        if chosen:
            table[name] = _row(chosen, seed)
    return table


def _row(chosen: Sequence[Record], seed: int) -> dict[str, Any]:
    clusters = [record.cluster for record in chosen]
    columns: dict[str, list[float]] = {
        "model": [record.right for record in chosen],
        "prior": [record.prior for record in chosen],
        "model_minus_prior": [record.right - record.prior for record in chosen],
    }
    row: dict[str, Any] = {"n": len(chosen), "pictures": len(set(clusters))}
    row |= {name: _estimate(values, clusters, seed) for name, values in columns.items()}
    blind = [(record, record.grey) for record in chosen if record.grey is not None]
    if blind:
        shown = [record.cluster for record, _ in blind]
        minus = [record.right - grey for record, grey in blind]
        row["grey_n"] = len(blind)
        row["grey"] = _estimate([float(grey) for _, grey in blind], shown, seed)
        row["model_minus_grey"] = _estimate(minus, shown, seed)
    return row


def _estimate(values: Sequence[float], clusters: Sequence[str], seed: int) -> dict[str, float]:
    estimate = bootstrap_mean(values, clusters, seed=seed)
    return {k: round(v, 4) for k, v in asdict(estimate).items() if k != "n"}


def table_rows(table: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, percentages with their intervals."""
    columns = ["model", "grey", "prior", "model_minus_grey", "model_minus_prior"]
    shown = [name for name in columns if any(name in row for row in table.values())]
    heads = ["question", "n", "pictures", *(name.replace("_", " ") for name in shown)]
    rows = []
    for name, row in table.items():
        cells = [
            percent(row[column], "+" if "minus" in column else "") if column in row else ""
            for column in shown
        ]
        rows.append([name, str(row["n"]), str(row["pictures"]), *cells])
    return heads, rows


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text: the first column to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    lines = []
    for row in [heads, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def percent(estimate: Mapping[str, float], sign: str = "") -> str:
    """An estimate in percent with its interval."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.0f}, {high:{sign}.0f}]"
