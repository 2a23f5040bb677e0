"""Long pictures are as the page says, slices never give more tokens, and every arm runs."""

from __future__ import annotations

import pytest
import torch
from long_pictures import Reader, Sizes, Tower, encode, make_arms, run_seed, summarise
from long_pictures_drawing import AREA, DIGITS, KINDS, PATCH, SIDE, Artist


def test_pictures_have_one_area_and_both_directions():
    pictures = Artist(0).pictures(60)
    for number, (image, aspect) in enumerate(zip(pictures.images, pictures.aspects, strict=True)):
        assert image.width * image.height == pytest.approx(AREA, rel=0.05)
        assert 1 <= aspect < 6.5
        assert aspect == 1 or (image.height > image.width) == bool(number % 2)
        sides = torch.tensor([image.height, image.width]) / max(image.size)
        assert torch.allclose(pictures.quarters[number, -1, 2:], sides, atol=1e-5)
    assert pictures.digits.shape == (60, DIGITS)
    assert pictures.aspects.max() > 4
    assert pictures.aspects.min() < 1.5


def test_a_patch_is_labelled_by_the_digit_in_its_middle():
    pixels, labels = Artist(1).patches(40)
    assert labels.shape == (40, (SIDE // PATCH) ** 2)
    shown = labels < KINDS
    ink = pixels[:, 0].unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH)).mean((2, 4)).flatten(1)
    assert bool(shown.any(1).all())
    assert ink[shown].mean() < ink[~shown].mean() - 0.2


def test_slices_never_have_more_tokens_and_say_where_they_look():
    pictures = Artist(2).pictures(12)
    tower = Tower()
    square, slices = (
        encode(tower, make_arms()[name], pictures) for name in ("square", "uhd-slices")
    )
    assert bool((square.views == 1).all())
    assert bool((slices.views >= 5).all())
    assert (~slices.blank).sum(1).max() <= (~square.blank).sum(1).min()
    for places, blank, image in zip(slices.places, slices.blank, pictures.images, strict=True):
        first, last = places[~blank][[4, -1]]  # of the first and of the last slice
        assert first[:2].tolist() == [0, 0]
        sides = torch.tensor([image.height, image.width]) / max(image.size)
        assert torch.allclose(last[2:], sides, atol=1e-3)


def test_blank_tokens_are_not_read():
    torch.manual_seed(0)
    pictures = Artist(3).pictures(4)
    seen = encode(Tower(), make_arms()["uhd-slices"], pictures)
    seen.blank[:, -4:] = True
    reader, everyone = Reader().eval(), torch.arange(4)
    before = reader(seen, everyone, pictures.quarters)
    seen.tokens[:, -4:] += 1
    assert torch.equal(reader(seen, everyone, pictures.quarters), before)
    seen.tokens[:, 0] += 1
    assert not torch.equal(reader(seen, everyone, pictures.quarters), before)


def test_all_arms_run():
    sizes = Sizes(train=8, test=24, reader_steps=2, batch=4)
    row = run_seed(0, Tower().requires_grad_(False), sizes)
    found = summarise([row, row])
    gain = found["all"]["uhd-slices"]["mean"] - found["all"]["square"]["mean"]
    assert found["all"]["uhd-slices minus square"]["mean"] == pytest.approx(gain, abs=0.02)
    assert sum(found[band]["pictures"] for band in found if band != "all") == 48
