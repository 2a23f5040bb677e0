"""Pictures that need nothing done are read where they lie; all others are made upright RGB."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import ExifTags, Image

from vistoken.core.errors import DataError
from vistoken.models.build import build
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.images import open_image
from vistoken.models.recipe import load_recipe

LEFT, RIGHT = (200, 10, 30), (20, 90, 250)


@pytest.fixture(scope="module")
def processor() -> VistokenImageProcessor:
    made: VistokenImageProcessor = build(load_recipe("pico"))[1].image_processor
    return made


def picture(mode: str = "RGB") -> Image.Image:
    made = Image.new("RGB", (40, 24), LEFT)
    made.paste(RIGHT, (20, 0, 40, 24))
    return made.convert(mode)


def test_a_ready_picture_is_not_copied_and_not_changed(processor, monkeypatch):
    ready = picture()
    before = ready.tobytes()
    wanted = processor([picture("RGBA")])["pixel_values"]
    monkeypatch.setattr("vistoken.models.image_processing.open_image", None)
    made = processor([ready])["pixel_values"]
    assert torch.equal(made, wanted)
    assert ready.tobytes() == before


@pytest.mark.parametrize("lay", ["rotated", "transparent", "grey", "file"])
def test_others_are_opened(processor, lay):
    given = picture({"transparent": "RGBA", "grey": "L"}.get(lay, "RGB"))
    if lay == "rotated":
        given.getexif()[ExifTags.Base.Orientation] = 6
    elif lay == "file":
        stream = io.BytesIO()
        given.save(stream, "PNG")
        given = Image.open(stream)
    opened = open_image(given)
    assert opened.size == ((24, 40) if lay == "rotated" else (40, 24))
    found = processor([given])
    assert torch.equal(found["pixel_values"], processor([opened])["pixel_values"])
    assert torch.equal(found["view_table"], processor.view_table(opened.height, opened.width))


def test_too_large_or_empty_is_refused_all_the_same(processor, monkeypatch):
    monkeypatch.setattr("vistoken.models.image_processing.MAX_PIXELS", 40 * 24 - 1)
    monkeypatch.setattr("vistoken.models.images._check_size", refuse)
    with pytest.raises(DataError, match="image 0: the picture given as Image has 40x24"):
        processor([picture()])


def refuse(size, limit, name):
    raise DataError(f"{name} has {size[0]}x{size[1]} pixels")
