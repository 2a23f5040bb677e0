"""`vistoken inspect model`: parameters, FLOPs and cache bytes, counted without memory."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import JsonOption, grouped, quieten, say, say_json, table
from vistoken.core.errors import UsageError

if TYPE_CHECKING:
    from vistoken.models.cost import ModelCost, ModuleCost


def model(
    name: Annotated[str, typer.Argument(help="Recipe name, checkpoint directory or hub id.")],
    image_size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in pixels; the tower's own size otherwise.")
    ] = None,
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens beside the picture.")] = 64,
    dtype: Annotated[
        str, typer.Option(help="Floating type that bytes are given for.")
    ] = "bfloat16",
    depth: Annotated[int, typer.Option(min=0, help="List modules down to this depth.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Count parameters, FLOPs and cache bytes of a model on the meta device.

    FLOPs are those of one picture and some text: of encoding it, of the prompt (prefill) and of
    each token of the answer (decode). A multiply-add counts as two.
    """
    size = _size(image_size)
    quieten()
    import torch

    from vistoken.cli.sources import read_config, read_image_processor
    from vistoken.models.cost import empty_model, measure_cost
    from vistoken.models.device import choose_dtype
    from vistoken.train.groups import part_parameters

    number = choose_dtype(dtype, torch.device("cpu"))
    network = empty_model(read_config(name))
    cost = measure_cost(
        network, read_image_processor(name).spec, size, text_tokens=text_tokens, depth=depth
    )
    groups: dict[str, int] = {
        group: sum(parameter.numel() for parameter in named.values())
        for group, named in part_parameters(network).items()
    }
    result = _as_json(name, cost, groups, number)
    say_json(result) if as_json else _show(result, cost)


def _as_json(name: str, cost: ModelCost, groups: dict[str, int], number: Any) -> dict[str, Any]:
    spatial = [module for module in cost.modules if module.spatial]
    encode = sum(cost.encode_flops.values())
    return {
        "model": name,
        "parameters": {
            "total": cost.total_parameters,
            "parts": cost.parameters,
            "groups": groups,
            "bytes": cost.total_parameters * number.itemsize,
        },
        "image": {
            "size": list(cost.image_size),
            "views": cost.views,
            "visual_tokens": cost.visual_tokens,
        },
        "text_tokens": cost.text_tokens,
        "flops": {
            "encode": encode,
            "encode_by_tower": cost.encode_flops,
            "connect": cost.connect_flops,
            "connect_spatial": sum(module.flops or 0 for module in spatial),
            "prefill": cost.prefill_flops,
            "decode_per_token": cost.decode_flops,
        },
        "cache_bytes_per_token": cost.cache_bytes(number),
        "dtype": str(number).removeprefix("torch."),
        "modules": [asdict(module) for module in cost.modules],
    }


def _show(result: dict[str, Any], cost: ModelCost) -> None:
    total = result["parameters"]["total"]
    table(
        ("part", "parameters", "share"),
        [
            *((part, n, f"{n / total:.1%}") for part, n in cost.parameters.items()),
            ("total", total, ""),
        ],
        f"{result['model']}: {grouped(total)} parameters",
        right="parameters,share",
    )
    flops = result["flops"]
    rows = [(f"encode {tower}", n) for tower, n in flops["encode_by_tower"].items()]
    rows += [("connect", flops["connect"]), ("  of which spatial tokens", flops["connect_spatial"])]
    prompt = cost.visual_tokens + cost.text_tokens
    rows += [(f"prefill, {prompt} tokens", flops["prefill"])]
    rows += [("decode, per token", flops["decode_per_token"])]
    height, width = cost.image_size
    table(
        ("step", "FLOPs", ""),
        [(step, n, grouped(n)) for step, n in rows],
        f"one {height}x{width} picture ({cost.views} views, {cost.visual_tokens} visual tokens) "
        f"and {cost.text_tokens} text tokens",
        right="FLOPs",
    )
    say(f"cache: {result['cache_bytes_per_token']:,} bytes per token in {result['dtype']}")
    say(f"weights: {result['parameters']['bytes']:,} bytes in {result['dtype']}")
    say()
    table(
        ("module", "class", "parameters", "FLOPs"),
        _folded(cost.modules),
        "modules",
        right="parameters,FLOPs",
    )


def _folded(modules: tuple[ModuleCost, ...]) -> list[tuple[object, ...]]:
    """Rows of a table in which equal numbered layers share one line."""
    rows: dict[tuple[object, ...], list[ModuleCost]] = {}
    for module in modules:
        # the first number counts layers; what is inside a layer folds with it
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", module.name)
        rows.setdefault((pattern, module.kind, module.parameters, module.flops), []).append(module)
    return [
        (
            f"{pattern} (x{len(same)})" if len(same) > 1 else same[0].name,
            kind,
            parameters,
            flops,
        )
        for (pattern, kind, parameters, flops), same in rows.items()
    ]


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise UsageError(f"--image-size {text!r} must be HEIGHTxWIDTH, such as 480x640")
    return int(match[1]), int(match[2])
