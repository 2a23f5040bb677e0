"""The toy of SAISA's benchmark learns to read the patch that it is asked for."""

from __future__ import annotations

import pytest
from saisa_two_hops import PATCHES, Toy


def test_questions_have_the_answers_they_should() -> None:
    toy = Toy(layers=1)
    labels, asked, answers = toy.draw(hops=2, count=64)
    for row, label, answer in zip(labels.tolist(), asked.tolist(), answers.tolist(), strict=True):
        assert row[(row.index(label) + 1) % PATCHES] == answer
    labels, asked, answers = toy.draw(hops=1, count=64)
    for row, place, answer in zip(labels.tolist(), asked.tolist(), answers.tolist(), strict=True):
        assert row[place - PATCHES] == answer


@pytest.mark.slow
def test_reads_the_patch_asked_for() -> None:
    assert Toy(layers=2).train(hops=1, steps=300) > 0.95
