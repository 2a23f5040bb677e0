"""Two results, question by question: the difference, its interval, and whether it is a fluke."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import comb
from pathlib import Path
from typing import Any

from vistoken.core.errors import DataError, UsageError
from vistoken.eval.records import Record, Results, differences
from vistoken.eval.scoring import bootstrap_mean
from vistoken.eval.summary import ALL, percent

_MAY_DIFFER = ("model", "versions", "weights", "prompt", "grey", "grey_limit", "prior")
"""What two results may differ in without being asked: the model and its controls."""


def compare(
    first: Path, second: Path, allow: Sequence[str] = (), seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare two results of the same questions.

    Args:
        first: Folder of results.
        second: Folder of results; differences are second minus first.
        allow: Settings that may differ all the same.
        seed: Seed of the bootstrap over pictures.

    Returns:
        Task -> kind (and ``all``) -> ``n``, ``first``, ``second``, ``difference`` (with its 95 %
        interval), ``only_first`` and ``only_second`` right, and McNemar's exact ``p``. The p-value
        takes questions for independent; the interval draws whole pictures.

    Raises:
        UsageError: The settings differ, or an unknown one is allowed.
        DataError: A folder holds no results, or not of the same questions.
    """
    a, b = Results(first), Results(second)
    old, new = a.settings(), b.settings()
    unknown = sorted(set(allow) - {*old, *new})
    if unknown:
        raise UsageError(
            f"--allow {unknown[0]}: results have the settings {', '.join(sorted(old))}"
        )
    changed = differences(old, new, (*_MAY_DIFFER, *allow))
    if changed:
        raise UsageError(
            f"{first} (there) and {second} (here) were made with unlike settings: "
            f"{'; '.join(changed)}; evaluate both alike, or add --allow NAME"
        )
    pairs = _pairs(a, b)
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for task in dict.fromkeys(left.task for left, _ in pairs):
        mine = [pair for pair in pairs if pair[0].task == task]
        kinds = sorted({left.kind for left, _ in mine})
        tables[task] = {
            kind: paired([pair for pair in mine if pair[0].kind == kind], seed) for kind in kinds
        }
        tables[task][ALL] = paired(mine, seed)
    return tables


def paired(pairs: Sequence[tuple[Record, Record]], seed: int = 0) -> dict[str, Any]:
    """Statistics of pairs of answers to the same questions."""
    changes = [float(right.right) - float(left.right) for left, right in pairs]
    estimate = bootstrap_mean(changes, [left.cluster for left, _ in pairs], seed=seed)
    gained, lost = changes.count(1.0), changes.count(-1.0)
    return {
        "n": len(pairs),
        "first": round(sum(left.right for left, _ in pairs) / len(pairs), 4),
        "second": round(sum(right.right for _, right in pairs) / len(pairs), 4),
        "difference": {k: round(v, 4) for k, v in asdict(estimate).items() if k != "n"},
        "only_first": lost,
        "only_second": gained,
        "p": mcnemar(lost, gained),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that discordant pairs fall either way with equal chance.

    Args:
        only_first: Pairs where only the first is right.
        only_second: Pairs where only the second is right.
    """
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def comparison_rows(
    table: Mapping[str, Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of one task's comparison."""
    heads = ["question", "n", "first", "second", "difference", "only first", "only second", "p"]
    rows = [
        [
            kind,
            str(row["n"]),
            f"{100 * row['first']:.1f}",
            f"{100 * row['second']:.1f}",
            percent(row["difference"], "+"),
            str(row["only_first"]),
            str(row["only_second"]),
            f"{row['p']:.3g}",
        ]
        for kind, row in table.items()
    ]
    return heads, rows


def _pairs(a: Results, b: Results) -> list[tuple[Record, Record]]:
    left = {(record.task, record.id): record for record in a.records()}
    right = {(record.task, record.id): record for record in b.records()}
    if left.keys() != right.keys() or not left:
        only = sorted(left.keys() ^ right.keys())
        which = f", {only[0][1]!r} of {only[0][0]!r} is in one alone" if only else ""
        raise DataError(
            f"{a.folder} has {len(left)} answers and {b.folder} {len(right)}{which}; finish both "
            "evaluations first (the same command goes on)"
        )
    for key, record in left.items():
        if right[key].reference != record.reference:
            raise DataError(f"question {key[1]!r} has another right answer in {b.folder}")
    return [(record, right[key]) for key, record in left.items()]
