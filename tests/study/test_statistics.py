"""Intervals over seeds and pictures."""

from __future__ import annotations

import numpy as np
import pytest

from vistoken.eval.records import Record
from vistoken.study.statistics import accuracy, difference, interval


def records(right, pictures="aabb"):
    return [
        Record("val", str(n), "name", picture, "x", "x", True, bool(hit), False)
        for n, (hit, picture) in enumerate(zip(right, pictures, strict=True))
    ]


def test_no_spread_no_width():
    found = interval([[1, 0, 1, 0]] * 3, list("aabb"))
    assert (found["value"], found["low"], found["high"]) == (0.5, 0.5, 0.5)
    assert found["seeds"] == [0.5] * 3


def test_seeds_and_pictures_both_widen_it():
    seeds_differ = interval([[1, 1, 1, 1], [0, 0, 0, 0]], list("aabb"))
    assert (seeds_differ["low"], seeds_differ["high"]) == (0, 1)
    pictures_differ = interval([[1, 1, 0, 0]] * 2, list("aabb"))
    assert (pictures_differ["low"], pictures_differ["high"]) == (0, 1)


def test_coverage_of_a_known_mean():
    """Of many studies with a true mean of 0.6, about 19 in 20 have it in their interval."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        chance = (
            0.6 + 0.1 * generator.standard_normal((8, 1)) + 0.1 * generator.standard_normal((1, 60))
        )
        values = (generator.random((8, 60)) < chance.clip(0, 1)).astype(float)
        found = interval(values.tolist(), [str(n) for n in range(60)], draws=300)
        hits += found["low"] <= 0.6 <= found["high"]
    assert 0.85 <= hits / 200 <= 0.995


def test_differences_pair_seeds_and_questions():
    arm = {0: records([1, 1, 1, 0]), 1: records([1, 1, 0, 1])}
    base = {0: records([1, 0, 1, 0]), 1: records([1, 0, 1, 0]), 2: records([0, 0, 0, 0])}
    found = difference(arm, {seed: base[seed] for seed in (0, 1)})
    assert found["seeds"] == [0.25, 0.25]
    assert (found["only_arm"], found["only_baseline"]) == (3, 1)
    assert found["p"] == pytest.approx(0.625)
    assert accuracy(arm)["value"] == 0.75
