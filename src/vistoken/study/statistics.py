"""Accuracies over seeds and pictures, and differences between arms, with intervals over both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vistoken.eval.compare import mcnemar
from vistoken.eval.records import Record

Seeds = Mapping[int, Sequence[Record]]
"""Answers to the same questions by seed."""

_DRAWS = 2000


def interval(
    values: Sequence[Sequence[float]], clusters: Sequence[str], seed: int = 0, draws: int = _DRAWS
) -> dict[str, Any]:
    """Mean over seeds and questions, with a 95 % interval that draws seeds and pictures.

    A study's question is what another training run on other pictures would give, so both are
    drawn with replacement, independently. With three seeds the part of the seeds is rough; the
    mean of every seed stands beside it.

    Args:
        values: One row per seed, one value per question.
        clusters: The pictures of each question.
        seed: Seed of the draws.
        draws: Resamples.
    """
    places = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    owner = np.array([places[cluster] for cluster in clusters])
    table = np.asarray(values, dtype=np.float64)
    sums = np.stack([np.bincount(owner, row, len(places)) for row in table])
    sizes = np.bincount(owner, minlength=len(places)).astype(np.float64)
    generator = np.random.default_rng(seed)
    runs = generator.multinomial(len(table), np.full(len(table), 1 / len(table)), draws)
    pictures = generator.multinomial(len(places), np.full(len(places), 1 / len(places)), draws)
    means = ((runs @ sums) * pictures).sum(1) / (len(table) * (pictures @ sizes))
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "value": round(float(table.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "seeds": [round(float(row.mean()), 4) for row in table],
    }


def accuracy(arm: Seeds, column: str = "right") -> dict[str, Any]:
    """Accuracy of one arm on some questions.

    Args:
        arm: Its answers.
        column: ``right``, ``grey`` or ``prior``.
    """
    first = next(iter(arm.values()))
    values = [[float(getattr(record, column)) for record in records] for records in arm.values()]
    return interval(values, [record.cluster for record in first])


def difference(arm: Seeds, baseline: Seeds) -> dict[str, Any]:
    """Arm minus baseline on the same questions at the same seeds.

    Returns:
        ``value``, ``low``, ``high``, ``seeds``; ``only_arm``, ``only_baseline``: questions that one
        of both alone answered rightly, over all seeds; and McNemar's exact ``p`` of those, which
        takes them for independent.
    """
    seeds = [seed for seed in arm if seed in baseline]
    first = arm[seeds[0]]
    values = [
        [float(a.right) - float(b.right) for a, b in zip(arm[s], baseline[s], strict=True)]
        for s in seeds
    ]
    flat = [value for row in values for value in row]
    gained, lost = flat.count(1.0), flat.count(-1.0)
    return {
        **interval(values, [record.cluster for record in first]),
        "only_arm": gained,
        "only_baseline": lost,
        "p": mcnemar(lost, gained),
    }
