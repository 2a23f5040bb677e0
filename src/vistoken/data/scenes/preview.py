"""A contact sheet of a data file: pictures, boxes, questions and answers on one page."""

from __future__ import annotations

import base64
import html
import itertools
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from vistoken.core.errors import DataError

_MEDIA_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; background: #fff; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; }
rect { fill: none; stroke: #e6007e; stroke-width: 2; }
text { font: 12px sans-serif; fill: #fff; stroke: #000; stroke-width: 3; paint-order: stroke; }
table { border-collapse: collapse; width: 100%; margin-top: .5rem; }
td { border-top: 1px solid #ddd; padding: .15rem .4rem; vertical-align: top; }
td:first-child { color: #777; white-space: nowrap; }
td:last-child { font-weight: 600; }
"""


def preview_page(rows_file: Path, out_html: Path, limit: int) -> None:
    """Write a self-contained page with the first pictures of a data file.

    Args:
        rows_file: JSONL in the data schema; boxes are drawn where a `.scenes.jsonl` lies beside it.
        out_html: Page to write.
        limit: Number of pictures.

    Raises:
        DataError: A file is missing or a line is not in the schema.
    """
    if not rows_file.is_file():
        raise DataError(f"{rows_file} is not a file; name the .jsonl of a split.")
    annotations = _annotations(rows_file.with_suffix(".scenes.jsonl"))
    figures: list[str] = []
    # A generator: a preview of a large file reads no further than it shows.
    groups = itertools.groupby(_read(rows_file), key=lambda row: _image_path(rows_file, row))
    for image, rows in itertools.islice(groups, limit):
        figures.append(_figure(rows_file.parent, image, list(rows), annotations.get(image)))
    title = html.escape(rows_file.name)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><main>{''.join(figures)}</main></html>\n"
    )
    out_html.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=out_html.parent, suffix=".html", delete=False, encoding="utf-8"
    ) as file:
        file.write(page)
    os.chmod(file.name, 0o644)
    os.replace(file.name, out_html)


def _read(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield cast(dict[str, Any], json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number} is not JSON ({error.msg}); write one object per line."
                ) from error


def _annotations(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    return {scene["image"]: scene for scene in _read(path)}


def _parts(row: dict[str, Any], role: str, kind: str, field: str) -> list[str]:
    return [
        part[field]
        for message in row["messages"]
        if message["role"] == role
        for part in message["content"]
        if part["type"] == kind
    ]


def _image_path(rows_file: Path, row: dict[str, Any]) -> str:
    try:
        return _parts(row, "user", "image", "path")[0]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{rows_file}: row {row.get('id', '?')!r} shows no picture; "
            "give its user message an image part with a path."
        ) from error


def _figure(
    root: Path, image: str, rows: list[dict[str, Any]], scene: dict[str, Any] | None
) -> str:
    path = root / image
    media_type = _MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None or not path.is_file():
        raise DataError(f"{path} is missing or neither JPEG nor PNG; restore it beside the rows.")
    link = f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
    lines = "".join(
        f"<tr><td>{html.escape(str(row.get('kind', '')))}</td>"
        f"<td>{html.escape(' '.join(_parts(row, 'user', 'text', 'text')))}</td>"
        f"<td>{html.escape(' '.join(_parts(row, 'assistant', 'text', 'text')))}</td></tr>"
        for row in rows
    )
    return f"<figure>{_picture(link, image, scene)}<table>{lines}</table></figure>"


def _picture(link: str, image: str, scene: dict[str, Any] | None) -> str:
    if scene is None:
        return f'<img src="{link}" alt="{html.escape(image)}" style="width:100%">'
    height, width = scene["size"]
    named = [(thing["name"], thing["box"]) for thing in scene["objects"]]
    if scene["text"] is not None:
        named.append((f'"{scene["text"]["word"]}"', scene["text"]["box"]))
    marks = "".join(
        f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'
        f'<text x="{left + 3}" y="{top + 14}">{html.escape(name)}</text>'
        for name, (top, left, bottom, right) in named
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(image)}">'
        f'<image href="{link}" width="{width}" height="{height}"/>{marks}</svg>'
    )
