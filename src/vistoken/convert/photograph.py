"""The photograph of the demo: a cup of coffee, unpacked from a package that carries it."""

from __future__ import annotations

from pathlib import Path

from vistoken.convert.packages import PackagePin, Progress, fetch_wheel

CREDIT = "'coffee' by Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0 (scikit-image 0.26.0)"

PHOTOGRAPH = PackagePin(
    name="scikit-image",
    version="0.26.0",
    members=("skimage/data/coffee.png",),
    # one wheel per platform: the picture itself is pinned
    contents=("sha256:cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",),
)
"""The package's notes on `coffee` (`skimage/data/_fetchers.py`) state CC0 by the photographer."""


def fetch_photograph(progress: Progress | None = None) -> Path:
    """Return the photograph's file, fetching it on first use.

    Args:
        progress: Receives one line before the download.

    Raises:
        MachineError: If pip is missing or could not get the package.
        WeightsError: If the picture is not the pinned one.
    """
    return fetch_wheel(PHOTOGRAPH, progress) / PHOTOGRAPH.members[0]
