"""The toy of SAISA's benchmark reads a patch, and goes from one patch to the next."""

from __future__ import annotations

import pytest
from saisa_two_hops import Toy


def test_questions_have_the_answers_they_should() -> None:
    toy = Toy(layers=1)
    pictures, asked, answers = toy.draw(hops=2, count=64)
    for row, label, answer in zip(pictures.tolist(), asked.tolist(), answers.tolist(), strict=True):
        assert row[(row.index(label) + 1) % toy.patches] == answer
    pictures, asked, answers = toy.draw(hops=1, count=64)
    for row, place, answer in zip(pictures.tolist(), asked.tolist(), answers.tolist(), strict=True):
        assert row[place - toy.patches] == answer


@pytest.mark.slow
def test_reads_the_patch_asked_for() -> None:
    assert Toy(layers=2).train(hops=1, steps=300) > 0.95


@pytest.mark.slow
def test_goes_to_the_next_patch_by_visual_keys_of_later_layers() -> None:
    everywhere, first_layer = (Toy(layers=3, patches=5, hide=hide) for hide in (False, True))
    assert everywhere.train(hops=2, steps=300) > 0.95
    assert first_layer.train(hops=2, steps=300) < 0.85
