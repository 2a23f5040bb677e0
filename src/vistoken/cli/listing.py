"""`vistoken list`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from vistoken.cli.console import JsonOption, check_choice, quieten, say, say_json, table

KINDS = ("recipes", "parts", "templates", "towers", "models")

_WIDTH = 80
"""Columns of redirected lists; a summary that is longer goes on in the next line."""

_TOWERS = (
    ("clip_vision_model", "CLIP"),
    ("siglip_vision_model", "SigLIP"),
    ("siglip2_vision_model", "SigLIP 2, flattened patches"),
    ("dinov2", "DINOv2"),
    ("dinov2_with_registers", "DINOv2 with registers"),
    ("convnext", "ConvNeXt, maps instead of tokens"),
    ("efficientnet-lite", "EfficientNet-Lite0, of this package"),
)


def show(
    kind: Annotated[
        str | None, typer.Argument(help="recipes, parts, templates, towers or models.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what there is; without a kind, the kinds."""
    if kind is None:
        say_json(list(KINDS)) if as_json else say("\n".join(KINDS))
        return
    check_choice("list", kind, KINDS)
    rows = _ROWS[kind]()
    if as_json:
        say_json(rows)
    elif rows:
        cells = [tuple(row.values()) for row in rows]
        table(tuple(rows[0]), cells, width=_WIDTH, whole="kind,name,model_type")


def _recipes() -> list[dict[str, str]]:
    quieten()
    from vistoken.models.recipe import load_recipe, recipe_names

    return [{"name": name, "summary": load_recipe(name).summary} for name in recipe_names()]


def _parts() -> list[dict[str, str]]:
    from vistoken.core.registry import KINDS as PART_KINDS
    from vistoken.core.registry import part_table

    entries = sorted(part_table().values(), key=lambda e: (PART_KINDS.index(e.kind), e.name))
    return [
        {"kind": e.kind, "name": e.name, "summary": e.summary, "paper": e.paper} for e in entries
    ]


def _templates() -> list[dict[str, str]]:
    quieten()
    from vistoken.models.templates import template_names

    return [{"name": name} for name in template_names()]


def _towers() -> list[dict[str, str]]:
    return [{"model_type": name, "summary": summary} for name, summary in _TOWERS]


def _models() -> list[dict[str, str]]:
    quieten()
    from vistoken.cli.sources import has_trained_weights
    from vistoken.convert.nano_parts import nano_parts_ready

    if not has_trained_weights("nano"):
        nano = "not trained in this package yet; run 'vistoken train nano'"
    elif nano_parts_ready():
        nano = "ready"
    else:
        nano = "run 'vistoken data fetch nano' once"
    return [
        {"name": "nano", "state": nano, "summary": "the embedded model"},
        {"name": "pico", "state": "ready", "summary": "random weights, for tests"},
    ]


_ROWS = {
    "recipes": _recipes,
    "parts": _parts,
    "templates": _templates,
    "towers": _towers,
    "models": _models,
}
