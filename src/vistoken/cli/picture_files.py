"""Files that `vistoken viz` draws: .png and .html, each written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistoken.core.errors import UsageError
from vistoken.core.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = (".png", ".html")

OutputOption = Annotated[
    list[Path] | None,
    typer.Option("--output", "-o", help="A .png or .html file; may be repeated."),
]


def check_files(paths: list[Path]) -> None:
    """Refuse files of another kind or in a folder that is not there.

    Raises:
        UsageError: Naming the file.
    """
    for path in paths:
        if path.suffix not in _SUFFIXES:
            raise UsageError(f"{path} must end with .png or .html")
        if not path.parent.is_dir():
            raise UsageError(f"the folder {path.parent} of {path.name} does not exist; make it")


def write_files(paths: list[Path], draw: Callable[[], Image], page: Callable[[], str]) -> None:
    """Write each file in its form.

    Args:
        paths: Where to.
        draw: Makes the picture.
        page: Makes the HTML.
    """
    for path in paths:
        if path.suffix == ".png":
            buffer = io.BytesIO()
            draw().save(buffer, "PNG")
            write_atomically(path, buffer.getvalue())
        else:
            write_atomically(path, page().encode())
