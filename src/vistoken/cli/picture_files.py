"""Files that `vistoken viz` draws: .png and .html, each written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistoken.core.errors import UsageError
from vistoken.core.files import writing

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
            _write(path, buffer.getvalue())
        else:
            _write(path, page().encode())


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
