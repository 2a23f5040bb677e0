"""`vistoken inspect tokens`: the views and tokens of a picture, predicted without weights."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import JsonOption, ModelOption, quieten, say, say_json, table

if TYPE_CHECKING:
    from torch import Tensor


def tokens(
    image: Annotated[str, typer.Argument(help="Picture, a path or an http(s) URL.")],
    model: ModelOption = "nano",
    limit: Annotated[int, typer.Option(min=0, help="Token rows to print; --json gives all.")] = 12,
    as_json: JsonOption = False,
) -> None:
    """Say what a picture becomes: its views, and what each visual token stands for."""
    quieten()
    from vistoken.cli.sources import check_model, read_image_processor
    from vistoken.core.tables import TOKEN, VIEW
    from vistoken.models.images import open_image

    check_model(model)
    picture = open_image(image, allow_url=True)
    processor = read_image_processor(model)
    views = processor.view_table(picture.height, picture.width)
    token_map = processor.plan.token_map(views)
    kinds = _kinds(token_map)
    view_rows, token_rows = _view_rows(VIEW.rows(views)), _token_rows(TOKEN.rows(token_map))
    if as_json:
        say_json(
            {
                "image": image,
                "size": [picture.height, picture.width],
                "model": model,
                "views": view_rows,
                "kinds": kinds,
                "tokens": token_rows,
            }
        )
        return
    say(f"{image}: {picture.height}x{picture.width} pixels")
    _print(view_rows, f"{len(view_rows)} views")
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    shown = f"; the first {limit} are" if limit < len(token_rows) else ""
    _print(token_rows[:limit], f"{len(token_rows)} visual tokens: {summary}{shown}")


def _kinds(token_map: Tensor) -> dict[str, int]:
    from vistoken.core.tables import TOKEN, TokenKind

    counts = Counter(TOKEN.get(token_map, "kind").tolist())
    return {TokenKind(kind).name.lower(): count for kind, count in counts.items()}


def _view_rows(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    from vistoken.core.tables import ViewKind

    columns = ("index", "tower", "group", "row", "col", "rows", "cols", "height", "width")
    return [
        {"kind": ViewKind(int(row["kind"])).name.lower()}
        | {column: row[column] for column in columns}
        | {"valid": [round(row[side], 2) for side in ("top", "left", "bottom", "right")]}
        for row in rows
    ]


def _token_rows(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    from vistoken.core.tables import TokenKind

    columns = ("view", "group", "row", "col", "level", "learned")
    return [
        {"number": number, "kind": TokenKind(int(row["kind"])).name.lower()}
        | {column: row[column] for column in columns}
        | {"rectangle": [round(row[side], 2) for side in ("top", "left", "bottom", "right")]}
        for number, row in enumerate(rows)
    ]


def _print(rows: list[dict[str, Any]], title: str) -> None:
    if not rows:
        say(title)
        return
    table(tuple(rows[0]), [tuple(row.values()) for row in rows], title)
