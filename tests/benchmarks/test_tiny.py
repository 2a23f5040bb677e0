"""The bootstrap knows how much one seed says."""

import torch
from tiny import bootstrap


def test_intervals_hold_the_mean_and_widen_with_seeds_that_differ():
    alike = bootstrap([torch.arange(100.0) % 2, torch.arange(100.0) % 2])
    assert alike["low"] < alike["mean"] == 50 < alike["high"]
    apart = bootstrap([torch.zeros(40), torch.ones(40)])
    assert (apart["low"], apart["mean"], apart["high"]) == (0, 50, 100)
    assert alike["high"] - alike["low"] < 25


def test_a_constant_has_no_spread():
    assert bootstrap([torch.ones(5), torch.ones(7)]) == {"mean": 100, "low": 100, "high": 100}
