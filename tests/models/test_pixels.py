"""Normalisation by table: the levels that Hugging Face's processors give, whatever the shape."""

import numpy as np
import pytest
import torch
from PIL import Image

from vistoken.core.parts import TowerInput
from vistoken.models.pixels import normalise

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)


def tower(mean, std):
    return TowerInput("t", (14, 14), mean, std)


@pytest.mark.parametrize(("mean", "std"), [CLIP, LITE])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 401)])
def test_every_level_is_that_of_the_formula(mean, std, size):
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    given = normalise(Image.fromarray(levels), tower(mean, std))
    scaled = (torch.from_numpy(levels).double() * (1 / 255)).float()
    expected = (scaled - torch.tensor(mean)) / torch.tensor(std)
    assert given.dtype == torch.float32
    assert given.is_contiguous()
    assert torch.equal(given, expected.permute(2, 0, 1))


def test_results_may_be_written_to():
    given = normalise(Image.new("RGB", (4, 4)), tower(*CLIP))
    given.zero_()
    assert normalise(Image.new("RGB", (4, 4)), tower(*CLIP)).abs().min() > 0
