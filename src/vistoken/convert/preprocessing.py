"""Reading a Hugging Face image processor's settings as a tower's geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoImageProcessor

from vistoken.core.errors import WeightsError

_BICUBIC = 3
_TO_UNIT = 1 / 255


@dataclass(frozen=True)
class Preprocessing:
    """How a tower wants its pixels.

    Args:
        size: (height, width) that the tower is given.
        mean: Per-channel mean, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
        fit: ``crop`` covers the size and cuts the centre, ``stretch`` takes the exact size.
        pad: The processor pads to a square first.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["crop", "stretch"]
    pad: bool


def read_preprocessing(directory: Path) -> Preprocessing:
    """Read the image processor that is stored with a tower.

    Raises:
        WeightsError: There is none, or it does something that no view function here does.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{directory} has no image processor that can be read ({first}); add the vision "
            "tower's preprocessor_config.json"
        ) from error
    _refuse_unusual(processor, directory)
    size, fit = _geometry(processor, directory)
    return Preprocessing(
        size=size,
        mean=_triple(processor.image_mean),
        std=_triple(processor.image_std),
        fit=fit,
        pad=bool(getattr(processor, "do_pad", False)),
    )


def _refuse_unusual(processor: Any, directory: Path) -> None:
    where = f"the image processor of {directory}"
    if processor.resample != _BICUBIC:
        raise WeightsError(
            f"{where} resizes with filter {processor.resample}; only bicubic is known"
        )
    if not (processor.do_resize and processor.do_rescale and processor.do_normalize):
        raise WeightsError(f"{where} must resize, rescale and normalise; it leaves one of them out")
    if not math.isclose(processor.rescale_factor, _TO_UNIT, rel_tol=1e-6):
        raise WeightsError(f"{where} rescales by {processor.rescale_factor}; only 1/255 is known")


def _geometry(
    processor: Any, directory: Path
) -> tuple[tuple[int, int], Literal["crop", "stretch"]]:
    size = processor.size
    # processors without a crop have no such field at all
    if getattr(processor, "do_center_crop", False):
        crop = (processor.crop_size["height"], processor.crop_size["width"])
        if size.get("shortest_edge") != min(crop) or crop[0] != crop[1]:
            raise WeightsError(
                f"the image processor of {directory} resizes to {dict(size)} and then cuts "
                f"{crop[0]}x{crop[1]}; only a cut of the whole shortest edge is known"
            )
        return crop, "crop"
    height, width = size.get("height"), size.get("width")
    if height is None or width is None:
        raise WeightsError(
            f"the image processor of {directory} gives no fixed size ({dict(size)}); set size to "
            "a height and a width"
        )
    return (height, width), "stretch"


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
