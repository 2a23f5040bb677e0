"""Choosing heads from ratios, and head masks on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistoken.core.errors import UsageError, WeightsError
from vistoken.systems.yopo.heads import (
    HeadMask,
    check_size,
    check_weights,
    fingerprint_of,
    read_head_mask,
    save_head_mask,
)
from vistoken.systems.yopo.selection import activity_ratio, choose_heads, threshold_for, vote


def test_ratio_is_visual_over_text():
    probs = torch.rand(3, 4, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    probs = probs / probs.sum(-1, keepdim=True)
    visual = torch.tensor([0, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
    wanted = probs[..., visual].sum((2, 3)) / probs[..., ~visual].sum((2, 3))
    mass = probs[..., visual].sum((2, 3))
    produced = activity_ratio(mass, torch.full((3, 1), 7))
    torch.testing.assert_close(produced, wanted)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.floats(0, 0.99), st.floats(0, 1), st.integers(0, 1000))
def test_vote_is_counting_active_samples(samples, majority, threshold, seed):
    ratios = torch.rand(samples, 3, 4, generator=torch.Generator().manual_seed(seed))
    counted = (ratios > threshold).sum(0) > majority * samples + 1e-9
    assert torch.equal(vote(ratios, majority) > threshold, counted)


def test_official_vote_is_more_than_40_of_400():
    ratios = torch.zeros(400, 1, 2)
    ratios[:40, 0, 0] = 1
    ratios[:41, 0, 1] = 1
    assert (vote(ratios, 0.1) > 0.5).tolist() == [[False, True]]
    with pytest.raises(UsageError, match="below 1"):
        vote(ratios, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 9), st.integers(1, 12), st.floats(0, 1), st.integers(0, 1000))
def test_target_average_within_one_head(layers, heads, share, seed):
    statistic = torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed))
    wanted = share * heads
    keep = choose_heads(statistic, threshold_for(statistic, wanted))
    assert keep[:2].all()
    assert abs(keep[2:].double().sum() / (layers - 2) - wanted) < 1
    assert abs(int(keep[2:].sum()) - wanted * (layers - 2)) <= 0.5 + 1e-6
    kept = statistic[2:][keep[2:]]
    dropped = statistic[2:][~keep[2:]]
    assert not len(kept) or not len(dropped) or kept.min() > dropped.max()


def test_targets_out_of_range():
    with pytest.raises(UsageError, match="from 0 to 4"):
        threshold_for(torch.rand(5, 4), 4.5)
    with pytest.raises(UsageError, match="model of 2 layers"):
        threshold_for(torch.rand(2, 4), 2)


@pytest.fixture
def mask():
    keep = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    return HeadMask(keep, torch.rand(4, 4), "", {"samples": "3"})


def test_files_come_back(build, mask, tmp_path):
    language_model = build().model
    named = HeadMask(mask.keep, mask.statistic, fingerprint_of(language_model), mask.details)
    save_head_mask(named, tmp_path / "heads.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["heads.safetensors"]
    read = read_head_mask(tmp_path / "heads.safetensors")
    check_weights(read, language_model, "mask")
    assert torch.equal(read.keep, mask.keep)
    assert torch.equal(read.statistic, mask.statistic)
    assert read.details == {"samples": "3"}
    assert read.digits() == tuple("".join(str(int(v)) for v in row) for row in mask.keep)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_released_arrays(mask, tmp_path, dtype):
    np.save(tmp_path / "heads.npy", mask.keep.numpy().astype(dtype))
    assert torch.equal(read_head_mask(tmp_path / "heads.npy").keep, mask.keep)


def test_masks_of_another_model(build, mask, tmp_path):
    path = tmp_path / "heads.safetensors"
    other = HeadMask(mask.keep, None, fingerprint_of(build("llama-mha").model))
    save_head_mask(other, path)
    with pytest.raises(WeightsError, match="other weights"):
        check_weights(read_head_mask(path), build().model, "mask")
    save_head_mask(HeadMask(mask.keep[:3]), path)
    with pytest.raises(WeightsError, match="3 layers of 4 heads, the language model 4 of 4"):
        check_size(read_head_mask(path), build().config, "mask")


def test_fingerprint_is_of_the_weights_not_of_their_type(build):
    model = build().model
    name = fingerprint_of(model)
    assert fingerprint_of(build().model.to(torch.bfloat16)) == name
    with torch.no_grad():
        model.layers[3].mlp.down_proj.weight[0, 0] += 0.5
    assert fingerprint_of(model) != name


def test_files_that_are_no_masks(tmp_path):
    def refused(name, words):
        with pytest.raises(WeightsError, match=words):
            read_head_mask(tmp_path / name)

    refused("absent.npy", "does not exist")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("pickled.npy", "no plain array")
    np.save(tmp_path / "flat.npy", np.ones(4))
    refused("flat.npy", r"\(layers, heads\)")
    np.save(tmp_path / "thirds.npy", np.full((2, 2), 0.3))
    refused("thirds.npy", "0 and 1")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    refused("cut.npy", "no plain array")
    (tmp_path / "mask.json").write_text("{}")
    refused("mask.json", "must be a .safetensors or .npy")
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    refused("cut.safetensors", "damaged")
