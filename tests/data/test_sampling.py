"""The modality- and length-grouped order: golden cases and properties."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vistoken.core.errors import DataError, UsageError
from vistoken.data.sampling import (
    ModalityLengthSampler,
    group_by_modality_and_length,
    modality_length,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-training"
CASES = json.loads((GOLDEN / "modality_sampler.json").read_text(encoding="utf-8"))["cases"]

lengths = st.lists(st.integers(-200, 200).filter(bool), max_size=80)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["torch_manual_seed"]))
def test_golden_order(case):
    seed = case["torch_manual_seed"]
    sampler = ModalityLengthSampler(case["lengths"], case["batch_size"], case["world_size"], seed)
    assert list(sampler) == case["indices"]
    torch.manual_seed(seed)
    order = group_by_modality_and_length(
        case["lengths"], case["batch_size"], case["world_size"], None
    )
    assert order == case["indices"]


@given(lengths, st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_every_sample_once_and_one_modality_per_step(values, batch_size, world_size, seed):
    order = list(ModalityLengthSampler(values, batch_size, world_size, seed))
    assert sorted(order) == list(range(len(values)))
    step = batch_size * world_size
    mixed = [
        start
        for start in range(0, len(order), step)
        if len({values[index] > 0 for index in order[start : start + step]}) == 2
    ]
    # Only the samples put off to the end, fewer than two steps and one more, may be mixed.
    assert all(start >= len(order) - 2 * step for start in mixed)


def test_text_only_data_keeps_its_negative_lengths():
    values = [-5, -1, -9, -3]
    assert [values[index] for index in ModalityLengthSampler(values, 4, 1)] == [-1, -3, -5, -9]


def test_epochs_differ_and_resuming_goes_on():
    values = list(range(1, 41))
    sampler = ModalityLengthSampler(values, 2, 2, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    resumed = ModalityLengthSampler(values, 2, 2, seed=3)
    resumed.load_state_dict({**sampler.state_dict(), "start": 12})
    assert list(resumed) == second[12:]
    assert len(resumed) == 28
    resumed.set_epoch(2)
    assert len(list(resumed)) == 40


def test_works_in_a_data_loader():
    values = [3, -4, 5, -6, 7, -8]
    sampler = ModalityLengthSampler(values, 2, 1, seed=1)
    loader = torch.utils.data.DataLoader(range(6), batch_size=2, sampler=sampler)
    assert torch.cat(list(loader)).tolist() == list(sampler)


def test_refusals():
    with pytest.raises(DataError, match="sample 2 has length 0"):
        ModalityLengthSampler([1, -1, 0], 2)
    with pytest.raises(UsageError, match="batch_size 0"):
        ModalityLengthSampler([1], 0)
    with pytest.raises(UsageError, match="seed 1, this run has 2"):
        ModalityLengthSampler([1], 1, seed=2).load_state_dict({"seed": 1, "epoch": 0, "start": 0})


def test_lengths_count_words_and_tell_modality():
    words = [{"role": "user", "content": [{"type": "text", "text": "Two words"}]}]
    assert modality_length(words) == -2
    words[0]["content"].insert(0, {"type": "image", "path": "x.png"})
    assert modality_length(words) == 3
    assert modality_length([{"role": "user", "content": []}]) == -1
