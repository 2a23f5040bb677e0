"""Pairs lie in different tiles, crowds are counted and cut, and every arm runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from glyph_pairs import PARTS, Model, Sizes, Tower, encode, run_seed, summarise
from glyph_pairs_drawing import KINDS, LARGE, MOST, SIDE, Artist, N


def tiles_with_ink(levels):
    dark = levels < np.median(levels) - 60
    places = [(r, c) for r in range(N) for c in range(N)]
    windows = [dark[r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE].sum() for r, c in places]
    return sum(ink > 20 for ink in windows)


def test_pairs_lie_whole_in_two_tiles_and_half_are_equal():
    pairs = Artist(0).pairs(40)
    assert all(tiles_with_ink(levels) == 2 for levels in pairs.levels)
    assert pairs.answers.float().mean() == 0.5
    assert not pairs.cut.any()


def test_crowds_are_of_every_number_and_often_cut():
    crowds = Artist(0).crowds(80)
    assert torch.bincount(crowds.answers).tolist() == [20] * MOST
    assert bool((crowds.cut <= crowds.answers + 1).all())
    assert 0.3 < (crowds.cut > 0).float().mean() < 1


def test_views_to_learn_from_are_labelled():
    pixels, kinds, numbers = Artist(0).views(40)
    assert pixels.shape == (40, 3, SIDE, SIDE)
    assert kinds.max() == KINDS
    assert kinds.min() >= 0
    assert bool((numbers[1::2] >= 1).all())  # a strided view shows every glyph of its scene
    assert numbers.max() <= MOST


def test_only_the_enhancement_looks_from_tile_to_tile():
    torch.manual_seed(0)
    seen = encode(Tower(), Artist(0).pairs(2))
    assert seen.features.shape[1] == 2 * N * N + 1
    assert seen.table.shape[0] == 2 * N * N + 1
    changed = seen.features.clone()
    changed[:, N * N : -1] += 1  # strided views
    for arm, depends in (("dual", True), ("mean", True), ("local", False)):
        model = Model(PARTS["pairs", arm], 2, attends=False).eval()
        same = torch.equal(model(seen.features, seen.table), model(changed, seen.table))
        assert same != depends


def test_all_arms_run():
    sizes = Sizes(train=8, test=16, reader_steps=2, batch=4)
    row = run_seed(0, Tower().requires_grad_(False), sizes, attends=True)
    assert len(row) == len(PARTS) + 2
    found = summarise([row, row])
    gain = found["pairs: dual"]["mean"] - found["pairs: local"]["mean"]
    assert found["pairs: dual minus local"]["mean"] == pytest.approx(gain, abs=0.02)
    assert LARGE == N * SIDE
