"""The pictures of cut words are cut where they should be, and both ways to drop keep as many."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from cut_words import PICTURE, Reader, Sizes, interval, make_tower, run_seed, tiling
from cut_words import DropAtRandom as Dropper
from cut_words_pictures import FIRST, GLYPHS, LAST, TILE, WORD, Pictures

from vistoken.core.tables import TOKEN, VIEW
from vistoken.models.decoder import MechanismContext, SequenceState
from vistoken.systems.mini_monkey.config import ScmConfig
from vistoken.systems.mini_monkey.scm import Scm


def pictures(seed=0):
    return Pictures(random.Random(seed), np.random.default_rng(seed))


def test_words_lie_across_a_cut_line_or_inside_a_tile():
    made = pictures()
    assert {len(first + last) for first in FIRST for last in LAST} == {GLYPHS}
    for _ in range(200):
        across, inside = made._across(), made._inside()
        assert across // TILE[1] != (across + WORD - 1) // TILE[1]
        assert inside // TILE[1] == (inside + WORD - 1) // TILE[1]
        assert 0 <= across < across + WORD <= PICTURE[1]


def test_the_second_tiling_has_a_cut_line_of_its_own():
    table = tiling("any").view_table(*PICTURE)
    groups, cols = VIEW.get(table, "group"), VIEW.get(table, "cols")
    assert groups.tolist() == [1, 1, 1, 2, 2, 0]
    assert cols.tolist() == [3, 3, 3, 2, 2, 1]
    alone = tiling("none").view_table(*PICTURE)
    assert torch.equal(alone, VIEW.set(table[groups != 2], index=[0, 1, 2, 3], source=[0, 1, 2, 3]))


def test_random_dropping_keeps_as_many_as_scm():
    reader = Reader(tiling("any"))
    scm = Scm(ScmConfig(ratio=0.5), MechanismContext(reader.model.config, 0))
    table = reader.table.repeat(2, 1, 1)
    rows = table.shape[1]
    state = SequenceState(
        hidden=torch.zeros(2, rows, 4),
        position_ids=torch.arange(rows).expand(2, -1),
        valid=torch.ones(2, rows, dtype=torch.bool),
        token_map=table,
    )
    keep = Dropper(scm, torch.Generator().manual_seed(0)).shorten(state, scorer=None)
    assert keep.sum(1).tolist() == [scm.kept_length(reader.table)] * 2
    detailed = TOKEN.get(table, "group") == 1
    assert bool(keep[~detailed].all())
    assert not torch.equal(keep[0], keep[1])


def test_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["high"] - 2 == pytest.approx(4.30 / 3**0.5, abs=0.01)


@pytest.mark.slow
def test_all_arms_run():
    sizes = Sizes(tower_steps=3, train=40, test=40, reader_steps=3, batch=8, reader_batch=8)
    tower, _ = make_tower(pictures(), sizes)
    row = run_seed(0, tower, sizes)
    arms = ("detailed", "detailed and adaptive", "with scm", "with random dropping")
    assert all(set(row[arm]) == {"cut", "whole"} for arm in arms)
    assert 0.6 < row["whole_in_adaptive"] <= 1
