"""The fuzz benchmark in small, and that it would notice."""

import random

import pytest
from fuzzing import KINDS, Case, make_case
from serve_fuzz import (
    ALLOWED,
    LIMITS,
    SETTINGS,
    by_description,
    by_hand,
    growth,
    judge,
    left_behind,
    own_faults,
)
from serving import our_server


def test_cases_are_the_same_for_the_same_seed_and_of_every_kind():
    kinds = {make(random.Random(1)).kind for make, _ in KINDS}
    assert len(kinds) == len(KINDS)
    assert make_case(random.Random(5)) == make_case(random.Random(5))
    assert {make_case(random.Random(seed)).kind for seed in range(400)} == kinds


@pytest.mark.parametrize(
    ("case", "outcome", "fine"),
    [
        (Case("fine"), "200", True),
        (Case("fine"), "400", False),
        (Case("fine"), "closed", False),
        (Case("odd values"), "400", True),
        (Case("odd values"), "500", False),
        (Case("odd values"), "502", False),
        (Case("odd values"), "closed", False),
        (Case("bad headers", no_answer=True), "closed", True),
    ],
)
def test_faults_are_noticed(case, outcome, fine):
    assert (judge(case, outcome) is None) == fine


def test_growth_is_counted_over_the_last_parts():
    assert growth([400, 450, 490, 500, 500, 504]) == pytest.approx(0.008)
    assert growth([400, 450, 490, 500, 505, 510]) > ALLOWED
    assert growth([500, 500, 500, 500, 500, 490]) < 0


@pytest.mark.slow
def test_a_short_run_finds_nothing(tmp_path):
    with our_server("pico", tmp_path / "log", LIMITS, **SETTINGS) as server:
        counts, faults = by_hand(server, range(150), 6, seed=11)
        theirs, more = by_description(server, 60)
        assert faults + more == []
        assert sum(counts.values()) == 150
        assert sum(theirs.values()) >= 30
        assert not any(left_behind(server).values())
        assert not any(own_faults(server).values())
        assert server.end() == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
