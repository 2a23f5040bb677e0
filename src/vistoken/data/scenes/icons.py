"""Icon drawings: four open emoji sets, fetched by npm and rendered once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vistoken.core.errors import MachineError, UsageError
from vistoken.core.files import replacing
from vistoken.data.scenes.fetch import NpmPackage, fetch_npm
from vistoken.data.scenes.names import Name, confusable_words, icon_names
from vistoken.data.scenes.sources import Credit
from vistoken.models.cache_dir import cache_dir

logger = logging.getLogger(__name__)

RENDER_PX = 168
Progress = Callable[[str, int, int], None]

PACKAGES: dict[str, NpmPackage] = {
    "noto": NpmPackage(
        "@iconify-json/noto",
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYe"
        "ZVAuaw==",
    ),
    "openmoji": NpmPackage(
        "@iconify-json/openmoji",
        "1.2.29",
        "sha512-vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/al"
        "s/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ"
        "5nFKJQ==",
    ),
    "twemoji": NpmPackage(
        "@iconify-json/twemoji",
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/m"
        "vgALsw==",
    ),
    "fluent-emoji": NpmPackage(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz"
        "4Hc/QA==",
    ),
}


class IconSource:
    """The curated names, drawn in the styles of four emoji sets (see `DrawingSource`).

    Args:
        held_out_style: The style that training never shows.
        progress: Called with a stage, the number done and the total while icons are rendered.

    Raises:
        UsageError: The style is unknown.
        MachineError: npm or resvg-py is missing.
    """

    title = "icons"
    may_mirror = True

    def __init__(
        self, held_out_style: str = "fluent-emoji", progress: Progress | None = None
    ) -> None:
        if held_out_style not in PACKAGES:
            raise UsageError(
                f"unknown icon style {held_out_style!r}; choose one of {', '.join(PACKAGES)}."
            )
        self.names = icon_names()
        self.confusable = confusable_words()
        self.train_styles: tuple[str, ...] = tuple(
            style for style in PACKAGES if style != held_out_style
        )
        self.held_out_styles: tuple[str, ...] = (held_out_style,)
        folders = {style: fetch_npm(package) for style, package in PACKAGES.items()}
        self.credits: dict[str, Credit] = {
            style: _credit(style, folder) for style, folder in folders.items()
        }
        self._rendered = _rendered_styles(folders, progress)
        self._row = {name.drawing: row for row, name in enumerate(self.names)}

    def drawing(self, name: Name, style: str) -> Image.Image:
        """Look up a rendered icon, cropped to its visible part (RGBA)."""
        picture = Image.fromarray(self._rendered[style][self._row[name.drawing]], "RGBA")
        return picture.crop(picture.getchannel("A").getbbox())

    def background_clashes(self, name: Name, colour: str) -> bool:
        """Icons have outlines or several colours, so none vanishes on a plain colour."""
        return False


def _credit(style: str, folder: Path) -> Credit:
    package = PACKAGES[style]
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    return Credit(
        info["name"],
        info["author"]["name"],
        info["license"]["spdx"],
        package.spec,
        package.integrity,
    )


def _rendered_styles(
    folders: dict[str, Path], progress: Progress | None
) -> dict[str, NDArray[np.uint8]]:
    """Map each style to [names, RENDER_PX, RENDER_PX, 4] uint8, rendering what is not cached."""
    drawings = [name.drawing for name in icon_names()]
    rendered: dict[str, NDArray[np.uint8]] = {}
    for style, folder in folders.items():
        key = json.dumps([PACKAGES[style].integrity, RENDER_PX, drawings])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        path = cache_dir() / "sources" / "rendered" / f"{style}-{RENDER_PX}px-{digest}.npy"
        if not path.is_file():
            _save_atomically(path, _render_style(style, folder, drawings, progress))
        rendered[style] = np.load(path, mmap_mode="r", allow_pickle=False)
    return rendered


def _render_style(
    style: str, folder: Path, drawings: list[str], progress: Progress | None
) -> NDArray[np.uint8]:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise MachineError(
            "rendering icons needs resvg-py; install vistoken[scenes] or use the source 'shapes'."
        ) from error
    icons = cast(dict[str, Any], json.loads((folder / "icons.json").read_text(encoding="utf-8")))
    pixels = np.zeros((len(drawings), RENDER_PX, RENDER_PX, 4), dtype=np.uint8)
    for row, drawing in enumerate(drawings):
        png = svg_to_bytes(
            svg_string=_svg(icons, drawing),
            width=RENDER_PX,
            height=RENDER_PX,
            skip_system_fonts=True,
        )
        with Image.open(io.BytesIO(bytes(png))) as picture:
            square = Image.new("RGBA", (RENDER_PX, RENDER_PX))
            square.paste(picture.convert("RGBA"), (0, 0))
            pixels[row] = np.asarray(square)
        if progress is not None:
            progress(f"render {style}", row + 1, len(drawings))
    return pixels


def _svg(icons: dict[str, Any], drawing: str) -> str:
    icon = icons["icons"][drawing]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons["width"])
    height = icon.get("height", icons["height"])
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _save_atomically(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch, scratch.open("wb") as file:
        np.save(file, pixels, allow_pickle=False)
