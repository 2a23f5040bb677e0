"""Shared fixtures: tiny models and pictures, made in milliseconds."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

torch.set_num_threads(1)

# how long an example takes depends on what else a machine does
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def make_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of smooth noise, different in every region."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 255, (max(2, height // 16), max(2, width // 16), 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="session")
def pico():
    """The pico model and its processor; do not modify them."""
    from vistoken.models.build import build
    from vistoken.models.recipe import load_recipe

    return build(load_recipe("pico"))


@pytest.fixture
def picture():
    """A function that makes pictures: (height, width, seed) -> PIL.Image."""
    return make_picture
