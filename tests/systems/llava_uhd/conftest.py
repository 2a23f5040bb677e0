"""Reference files and small models of LLaVA-UHD."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe

FOLDER = Path(__file__).parents[2] / "golden" / "llava-uhd"


@pytest.fixture(scope="session")
def case():
    """A function: name -> settings and tensors of a reference case."""

    def read(name):
        settings = json.loads((FOLDER / f"{name}.json").read_text())
        tensors = FOLDER / f"{name}.safetensors"
        return settings, load_file(tensors) if tensors.is_file() else {}

    return read


@pytest.fixture(scope="session")
def uhd_recipe():
    """A function: changes -> the pico recipe with LLaVA-UHD's parts, as plain data."""

    def make(**changes):
        values = load_recipe("pico").model_dump(exclude_none=True)
        values |= {
            "views": "uhd-slices",
            "connector": [{"part": "uhd-resampler", "options": {"grid": 3}}],
            "layout": "uhd-schema",
        }
        return values | changes

    return make


@pytest.fixture(scope="session")
def uhd(uhd_recipe):
    """A tiny model with LLaVA-UHD's parts and its processor; do not modify them."""
    return build(parse_recipe(uhd_recipe(), "uhd"))
