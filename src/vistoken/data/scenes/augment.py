"""Turn a drawing into the patch that is pasted: size, tilt and, for training, style variety."""

from __future__ import annotations

import random

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

# Below this a pixel is not visible, and boxes do not count it.
VISIBLE_ALPHA = 24


def visible_crop(picture: Image.Image) -> Image.Image:
    """Crop an RGBA picture to its visible pixels, so that a box says where the thing is."""
    visible = picture.getchannel("A").point(lambda alpha: 255 if alpha >= VISIBLE_ALPHA else 0)
    return picture.crop(visible.getbbox())


def resized(picture: Image.Image, longer_side_px: int) -> Image.Image:
    """Scale an RGBA picture so that its longer side has the given length."""
    scale = longer_side_px / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def vary_style(picture: Image.Image, rng: random.Random, *, may_mirror: bool) -> Image.Image:
    """Change how a drawing looks but not what it is.

    Args:
        picture: RGBA drawing at its final size.
        rng: Decides what is changed and how much.
        may_mirror: Whether a mirrored drawing keeps its name.

    Returns:
        RGBA drawing; tilting and outlines may make it a little larger.
    """
    if may_mirror and rng.random() < 0.3:
        picture = ImageOps.mirror(picture)
    if rng.random() < 0.5:
        picture = picture.rotate(
            rng.uniform(-14, 14), resample=Image.Resampling.BICUBIC, expand=True
        )
    if rng.random() < 0.5:
        picture = _tinted(picture, rng)
    if rng.random() < 0.2:
        picture = _outlined(picture, rng)
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.4)))
    return picture


def _tinted(picture: Image.Image, rng: random.Random) -> Image.Image:
    alpha = picture.getchannel("A")
    colours = ImageEnhance.Color(picture.convert("RGB")).enhance(rng.uniform(0.55, 1.35))
    colours = ImageEnhance.Contrast(colours).enhance(rng.uniform(0.75, 1.2))
    channels: list[Image.Image] = []
    for channel in colours.split():
        gain = rng.uniform(0.86, 1.14)
        channels.append(channel.point([min(255, round(value * gain)) for value in range(256)]))
    return Image.merge("RGBA", (*channels, alpha))


def _outlined(picture: Image.Image, rng: random.Random) -> Image.Image:
    width_px = rng.choice((2, 3))
    padded = ImageOps.expand(picture, border=width_px, fill=(0, 0, 0, 0))
    grown = padded.getchannel("A").filter(ImageFilter.MaxFilter(2 * width_px + 1))
    light = rng.choice(((255, 255, 255), (20, 20, 20)))
    sticker = Image.new("RGBA", padded.size, light)
    sticker.putalpha(grown)
    sticker.alpha_composite(padded)
    return sticker
