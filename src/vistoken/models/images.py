"""Opening pictures: whatever is handed in becomes an upright RGB picture, or one clear error."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vistoken.core.errors import DataError
from vistoken.models._image_fetch import fetch_url

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch

    ImageSource = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor

MAX_PIXELS = 89_478_485
"""Largest picture opened unless told otherwise: a quarter GiB of pixels, Pillow's own line."""

# Decoders that only decode: Pillow's EPS reader, for one, runs another program.
_FORMATS = (
    "AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP",
)  # fmt: skip
_WHITE = (255, 255, 255)


def open_image(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    where: str | None = None,
    allow_url: bool = False,
) -> Image.Image:
    """Open a picture as upright 8-bit RGB.

    The camera's rotation note is applied, transparency is laid on white, 16-bit values are scaled,
    CMYK and palettes are converted.

    Args:
        source: A path, an http(s) or data URL, an encoded picture, a Pillow picture, an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor (H, W) or (C, H, W). Arrays and
            tensors hold uint8, uint16 or floats from 0 to 1.
        max_pixels: Refuse larger pictures before decoding them.
        where: What names the picture in errors beside its path, a sample for instance.
        allow_url: Fetch http(s) URLs.

    Returns:
        The decoded picture, mode RGB.

    Raises:
        DataError: The picture is missing, not a picture, broken, animated, empty or too large.
    """
    name = _name(source, where)
    if isinstance(source, Image.Image):
        _check_size(source.size, max_pixels, name)
        with _decoding(name):
            _check_single_frame(source, name)
            return _to_rgb(source, name)
    if isinstance(source, str | Path | bytes):
        return _open_encoded(_encoded(source, allow_url, name), max_pixels, name)
    return _from_pixels(_as_array(source, name), max_pixels, name)


def _name(source: ImageSource, where: str | None) -> str:
    if isinstance(source, str) and source.startswith("data:"):
        label = "the picture in a data URL"
    elif isinstance(source, str | Path):
        label = f"picture {str(source)!r}"
    elif isinstance(source, bytes):
        label = "the encoded picture"
    else:
        label = f"the picture given as {type(source).__name__}"
    return label if where is None else f"{where}: {label}"


def _encoded(source: str | Path | bytes, allow_url: bool, name: str) -> Path | bytes:
    """What Pillow can open: a path as it is, a URL as its bytes."""
    if isinstance(source, Path | bytes):
        return source
    if source.startswith("data:"):
        return _decode_data_url(source, name)
    if source.startswith(("http://", "https://")):
        if not allow_url:
            raise DataError(
                f"{name} is a URL and fetching is off; download it, or pass allow_url=True"
            )
        return fetch_url(source, name)
    return Path(source)


def _decode_data_url(url: str, name: str) -> bytes:
    header, _, payload = url.partition(",")
    if not header.endswith(";base64"):
        raise DataError(f"{name} is not base64; write data:image/png;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name} is not valid base64 ({error}); encode it again") from error


def _open_encoded(source: Path | bytes, max_pixels: int, name: str) -> Image.Image:
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    if source == b"":
        raise DataError(f"{name} is empty; give an encoded picture")
    try:
        with _decoding(name), Image.open(stream, formats=_known_formats()) as image:
            _check_size(image.size, max_pixels, name)
            _check_single_frame(image, name)
            return _to_rgb(image, name)
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; check the path and the image root") from error
    except IsADirectoryError as error:
        raise DataError(f"{name} is a folder; name a file in it") from error
    except PermissionError as error:
        raise DataError(f"{name} may not be read; change its permissions") from error


@contextmanager
def _decoding(name: str) -> Generator[None]:
    """Turn what a decoder raises on bad bytes into one sentence."""
    try:
        with warnings.catch_warnings():
            # Our own limit speaks for pictures below it; a caller may have raised it knowingly.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except (DataError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not a picture in a known format, whatever its name says;"
            " give a PNG, JPEG or WebP file"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} would unpack to more pixels than is safe; scale it down first"
        ) from error
    # Broken files make decoders raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise DataError(
            f"{name} is truncated or corrupt ({error}); replace the file or leave it out"
        ) from error


@cache
def _known_formats() -> list[str]:
    """The allowed formats this Pillow was built with."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height == 0:
        raise DataError(f"{name} has no area ({width}x{height} pixels); give one with pixels")
    if width * height > max_pixels:
        raise DataError(
            f"{name} has {width}x{height} pixels, more than the {max_pixels:,} allowed;"
            " scale it down or raise max_pixels"
        )


def _check_single_frame(image: Image.Image, name: str) -> None:
    # A multi-picture JPEG of a camera or phone is a photograph with a preview behind it.
    if image.format == "MPO":
        return
    frames: int = getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(
            f"{name} has {frames} frames or pages; extract the one that is meant"
            " and give it as a picture of its own"
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would copy for nothing
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _from_uint16(np.asarray(image).astype(np.uint16))
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise DataError(f"{name} has 32-bit integer pixels; save it with 8 or 16 bits")
        return _from_uint16(values.astype(np.uint16))
    if image.mode == "F":
        raise DataError(f"{name} has floating-point pixels; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (*_WHITE, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    # `convert` hands out a copy, so the caller's picture is never shared.
    return image.convert("RGB")


def _from_uint16(values: np.ndarray) -> Image.Image:
    return Image.fromarray(_scale_uint16(values)).convert("RGB")


def _scale_uint16(values: np.ndarray) -> np.ndarray:
    # 65535 = 257 * 255, so this rounds to the nearest 8-bit value.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _as_array(source: object, name: str) -> np.ndarray:
    """Pixels as (H, W) or (H, W, C)."""
    if isinstance(source, np.ndarray):
        return source
    import torch

    if not isinstance(source, torch.Tensor):
        raise DataError(
            f"{name} cannot be opened; give a path, bytes, a Pillow picture, an array or a tensor"
        )
    pixels = source.detach().cpu()
    if pixels.is_floating_point():
        pixels = pixels.float()
    if pixels.ndim == 3:
        pixels = pixels.permute(1, 2, 0)
    return pixels.numpy()


def _from_pixels(pixels: np.ndarray, max_pixels: int, name: str) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        raise DataError(
            f"{name} has shape {pixels.shape} as (height, width, channels);"
            " give one picture with 1, 3 or 4 channels"
        )
    _check_size((pixels.shape[1], pixels.shape[0]), max_pixels, name)
    with _decoding(name):
        return _to_rgb(Image.fromarray(_as_uint8(pixels, name)), name)


def _as_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.uint16:
        return _scale_uint16(pixels)
    if np.issubdtype(pixels.dtype, np.floating):
        # Written so that a NaN, too, fails the comparison.
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError(f"{name} has floats outside 0 to 1; scale them or give uint8")
        return np.rint(pixels * 255).astype(np.uint8)
    raise DataError(f"{name} has pixels of type {pixels.dtype}; give uint8, uint16 or floats")
