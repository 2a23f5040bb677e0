"""From an RGB picture to normalised pixels, bit for bit what Hugging Face's PIL processors give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from vistoken.core.parts import TowerInput
from vistoken.models.pixels import normalise

LONGEST_SIDE = 10_000
"""Pictures are made smaller before padding only when the padded canvas would exceed this side."""

_LONGEST_RESIZED = 16  # in units of the tower's side; only then is a crop resized on its own


@dataclass(frozen=True)
class Fit:
    """How a tower's processor maps a picture: resize to (height, width), then cut at (top, left).

    Args:
        height: Height after resizing, before the cut.
        width: Width after resizing.
        top: First row kept.
        left: First column kept.
    """

    height: int
    width: int
    top: int
    left: int


def fit_to_tower(height: int, width: int, tower: TowerInput) -> Fit:
    """Geometry of the tower's own processor for a picture of this size.

    ``stretch`` takes the exact size. ``crop`` covers the tower's size with the aspect ratio kept
    (for a square tower: shortest edge resized, long side truncated to whole pixels), then cuts
    the centre, offsets rounded down.

    Source: transformers:image_transforms.py (``get_resize_output_image_size``, ``center_crop``).
    """
    target_h, target_w = tower.size
    if tower.fit == "stretch":
        return Fit(target_h, target_w, 0, 0)
    if target_h * width >= target_w * height:  # height is the tighter side
        new_h, new_w = target_h, max(int(target_h * width / height), target_w)
    else:
        new_h, new_w = max(int(target_w * height / width), target_h), target_w
    return Fit(new_h, new_w, (new_h - target_h) // 2, (new_w - target_w) // 2)


def to_tower(image: Image.Image, tower: TowerInput) -> Tensor:
    """Prepare a picture as the tower's own processor does.

    Args:
        image: RGB picture.
        tower: Geometry and normalisation.

    Returns:
        (3, height, width) float32 of the tower's size.
    """
    fit = fit_to_tower(image.height, image.width, tower)
    height, width = tower.size
    if max(fit.height, fit.width) > _LONGEST_RESIZED * max(tower.size):
        # A needle: resize only what the cut keeps, to bound memory.
        y, x = image.height / fit.height, image.width / fit.width
        bottom, right = min((fit.top + height) * y, image.height), (fit.left + width) * x
        box = (fit.left * x, fit.top * y, min(right, image.width), bottom)
        return normalise(image.resize((width, height), Image.Resampling.BICUBIC, box), tower)
    resized = image.resize((fit.width, fit.height), Image.Resampling.BICUBIC)
    cut = (fit.left, fit.top, fit.left + width, fit.top + height)
    return normalise(resized.crop(cut), tower)


def stretch_to_tower(image: Image.Image, tower: TowerInput) -> Tensor:
    """Resize a picture to the tower's exact size, aspect ratio ignored; (3, height, width)."""
    height, width = tower.size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return normalise(image, tower)


def paste_centred(
    image: Image.Image, size: tuple[int, int], offset: tuple[int, int], colour: Sequence[int]
) -> Image.Image:
    """Put a picture on a canvas of ``size`` (height, width) at ``offset`` (top, left).

    A picture that fills the canvas is given back as it is.
    """
    if (image.height, image.width) == tuple(size):
        return image
    canvas = Image.new("RGB", (size[1], size[0]), tuple(colour))
    canvas.paste(image, (offset[1], offset[0]))
    return canvas
