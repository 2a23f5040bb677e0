"""`vistoken inspect tokens`: tokens, FLOPs and memory of a picture, predicted without weights."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import (
    DtypeOption,
    JsonOption,
    ModelOption,
    grouped,
    quieten,
    say,
    say_json,
    table,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vistoken.models.forecast import Forecast

_MIB = 1 << 20
_MEMORY = {
    "weights": "weights",
    "cache": "key-value cache behind the prompt",
    "cache_per_token": "each further token's share of it",
    "encoding": "working memory of the towers (estimate)",
    "connecting": "working memory of connector and layout (estimate)",
    "prefill": "working memory of the prompt (estimate)",
    "peak": "most at a time",
}


def tokens(
    image: Annotated[
        str,
        typer.Argument(help="Picture, a path or an http(s) URL; or HEIGHTxWIDTH in pixels alone."),
    ],
    model: ModelOption = "nano",
    limit: Annotated[int, typer.Option(min=0, help="Token rows to print; --json gives all.")] = 12,
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens beside the picture.")] = 64,
    dtype: DtypeOption = "bfloat16",
    as_json: JsonOption = False,
) -> None:
    """Say what a picture becomes and what it takes, before anything runs.

    Its views, what each visual token stands for, the FLOPs of towers, connector, prompt and a step
    of the answer, and the memory of weights, cache and activations. No weights are read.
    """
    quieten()
    import torch

    from vistoken.cli.sources import check_model
    from vistoken.models.device import choose_dtype

    check_model(model)
    size = _size_of(image)
    number = choose_dtype(dtype, torch.device("cpu"))
    found = _forecast(model, size, text_tokens, number)
    if as_json:
        say_json(_as_json(image, model, found, number))
        return
    _show(image, found, limit, number)


def _size_of(image: str) -> tuple[int, int]:
    """(height, width) of a picture, or as it is written."""
    from vistoken.models.images import open_image

    written = re.fullmatch(r"(\d+)x(\d+)", image)
    if written is not None and not Path(image).exists():
        return int(written[1]), int(written[2])
    picture = open_image(image, allow_url=True)
    return picture.height, picture.width


def _forecast(model: str, size: tuple[int, int], text: int, dtype: torch.dtype) -> Forecast:
    from vistoken.cli.sources import read_config, read_image_processor
    from vistoken.models.cost import empty_model
    from vistoken.models.forecast import forecast

    network = empty_model(read_config(model))
    return forecast(network, read_image_processor(model).spec, size, text, dtype)


def _as_json(image: str, model: str, found: Forecast, dtype: torch.dtype) -> dict[str, Any]:
    from vistoken.core.tables import TOKEN, VIEW

    cost, context = found.cost, found.context
    views = [
        row | {"tokens": count}
        for row, count in zip(
            _view_rows(VIEW.rows(found.view_table)), found.tokens_of_views, strict=True
        )
    ]
    return {
        "image": image,
        "size": list(cost.image_size),
        "model": model,
        "views": views,
        "kinds": _kinds(found.token_map),
        "visual_tokens": cost.visual_tokens,
        "text_tokens": cost.text_tokens,
        "context": asdict(context) | {"fits": context.fits},
        "flops": {
            "encode": sum(cost.encode_flops.values()),
            "encode_by_tower": cost.encode_flops,
            "connect": cost.connect_flops,
            "prefill": cost.prefill_flops,
            "decode_per_token": cost.decode_flops,
        },
        "memory": {name: getattr(found.memory, name) for name in (*_MEMORY, "activations")},
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": _token_rows(TOKEN.rows(found.token_map)),
    }


def _show(image: str, found: Forecast, limit: int, dtype: torch.dtype) -> None:
    report = _as_json(image, "", found, dtype)
    height, width = report["size"]
    views, rows, kinds = report["views"], report["tokens"], report["kinds"]
    say(f"{image}: {height}x{width} pixels")
    _print(views, f"{len(views)} views")
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    shown = f"; the first {limit} are" if limit < len(rows) else ""
    _print(rows[:limit], f"{len(rows)} visual tokens: {summary}{shown}")
    flops = report["flops"]
    steps = [(f"encode {tower}", count) for tower, count in flops["encode_by_tower"].items()]
    steps += [
        ("connect", flops["connect"]),
        (f"prefill, {report['context']['needed']} tokens", flops["prefill"]),
        ("decode, per token", flops["decode_per_token"]),
    ]
    table(("step", "FLOPs", ""), [(s, n, grouped(n)) for s, n in steps], "FLOPs", right="FLOPs")
    memory = [(words, f"{report['memory'][n] / _MIB:,.2f}") for n, words in _MEMORY.items()]
    table(("memory", "MiB"), memory, f"memory in {report['dtype']}", right="MiB")
    if not found.context.fits:
        say(f"does not fit: {found.context.advice}")


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
