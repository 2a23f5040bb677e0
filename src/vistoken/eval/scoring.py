"""Scores of short answers: exact match, the answer prior, means with an interval."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vistoken.core.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
        value: The mean.
        low: Lower end.
        high: Upper end.
        n: Values in the mean.
    """

    value: float
    low: float
    high: float
    n: int


def normalise_answer(text: str) -> str:
    """Take away what does not change an answer: case, needless spaces, a last full stop."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def exact_match(answer: str, reference: str) -> bool:
    """Whether two answers are the same once normalised."""
    return normalise_answer(answer) == normalise_answer(reference)


def answer_prior(answers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The most common answer of each kind: what can be said without a look at the picture.

    Args:
        answers: (kind, answer) of training questions.

    Returns:
        Kind -> normalised answer; of equally common ones the first in alphabetical order.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, answer in answers:
        counts[kind][normalise_answer(answer)] += 1
    return {kind: min(seen, key=lambda a: (-seen[a], a)) for kind, seen in counts.items()}


def prior_hits(prior: Mapping[str, str], answers: Iterable[tuple[str, str]]) -> list[bool]:
    """Whether the prior answers each (kind, answer) rightly.

    Raises:
        DataError: A kind that the prior has not seen.
    """
    hits = []
    for kind, answer in answers:
        if kind not in prior:
            raise DataError(
                f"questions of kind {kind!r} have no answer prior: the training file has none; "
                "make both files in one run of 'vistoken data make'"
            )
        hits.append(exact_match(prior[kind], answer))
    return hits


def bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean with a percentile interval over whole clusters drawn with replacement.

    Questions about one picture are right or wrong together, so pictures are drawn, not questions.

    Args:
        values: One value per question.
        clusters: The picture of each question.
        draws: Resamples.
        seed: Seed of the draws.

    Raises:
        ValueError: No values, or not one cluster per value.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values with {len(clusters)} clusters have no mean")
    places = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    sums, sizes = np.zeros(len(places)), np.zeros(len(places))
    for value, cluster in zip(values, clusters, strict=True):
        sums[places[cluster]] += value
        sizes[places[cluster]] += 1
    chosen = np.random.default_rng(seed).integers(0, len(places), (draws, len(places)))
    means = sums[chosen].sum(1) / sizes[chosen].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(sums.sum() / sizes.sum()), float(low), float(high), len(values))
