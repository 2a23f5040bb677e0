"""What the decoder of a checkpoint computes and keeps, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paired import Times, compare, take_turns
from torch import Tensor

from vistoken.api import load
from vistoken.core.parts import FEATURES
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.plan_cost import count_plans, prompt_map
from vistoken.train.cache import fast_compute

BEFORE, AFTER, STEPS = 20, 44, 8
"""Text tokens around the picture, and decoding steps that are timed."""
Pair = tuple[VistokenForConditionalGeneration, Any]


def count(checkpoints: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """FLOPs of the decoder by phase and bytes of its cache, by model, beside the first one's.

    One picture between 64 tokens of text, then one step; counted from the plans, attention as full
    rectangles; towers, connector and head left out, SAISA's projectors counted.
    """
    counts = {name: _count(*load(path, dtype="float32")) for name, path in checkpoints.items()}
    base = next(iter(counts.values()))
    same = ("prefill_flops", "decode_flops", "cache_bytes")
    return {
        name: {**row, "ratio": {key: round(row[key] / base[key], 4) for key in same}}
        for name, row in counts.items()
    }


def _count(model: VistokenForConditionalGeneration, processor: Any) -> dict[str, Any]:
    picture = _token_map(model, processor)
    table = prompt_map([picture], BEFORE, AFTER)
    core = model.model
    side = {FEATURES: [torch.zeros(len(picture), core.plan.projected_width)]}
    cost = count_plans(core.language_model, core.stack, table, side)
    return {
        "visual_tokens": len(picture),
        "text_tokens": BEFORE + AFTER,
        "prefill_flops": cost.prefill.flops,
        "decode_flops": cost.decode.flops,
        "cache_bytes": cost.prefill.cache_bytes(torch.bfloat16),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def time_phases(checkpoints: Mapping[str, Path], rounds: int) -> dict[str, dict[str, Any]]:
    """Times of prefill and of decoding beside the first model's; pairs take turns."""
    first, *others = checkpoints
    base = _inputs(*load(checkpoints[first], dtype=fast_compute()))
    rows: dict[str, dict[str, Any]] = {}
    for name in others:  # two models in memory at a time
        other = _inputs(*load(checkpoints[name], dtype=fast_compute()))
        runs = {first: partial(_run_once, *base), name: partial(_run_once, *other)}
        measured = take_turns(runs, rounds=rounds, warmup=1)
        for one in (first, name):
            rows[one] = {
                phase: compare(seconds, measured[first][phase])
                for phase, seconds in measured[one].items()
            }
    return rows


@torch.inference_mode()
def _inputs(
    model: VistokenForConditionalGeneration, processor: Any
) -> tuple[VistokenForConditionalGeneration, Tensor, Any]:
    view_table = _view_table(processor)
    generator = torch.Generator().manual_seed(0)
    towers = processor.image_processor.spec.towers
    pixels = [torch.randn(3, *tower.size, generator=generator) for tower in towers]
    features = model.get_image_features([p.to(model.device) for p in pixels], view_table)
    visual = len(features.pooler_output[0])
    text = torch.randint(3, 400, (1, BEFORE + AFTER), generator=generator)
    slots = torch.full((1, visual), model.config.image_token_id)
    ids = torch.cat([text[:, :BEFORE], slots, text[:, BEFORE:]], dim=1).to(model.device)
    return model, ids, {"image": features}


@torch.inference_mode()
def _run_once(model: VistokenForConditionalGeneration, ids: Tensor, encoded: Any) -> Times:
    stamps = [_now(model)]
    outputs = model(input_ids=ids, mm_encoder_outputs=encoded, use_cache=True, logits_to_keep=1)
    stamps.append(_now(model))
    for _ in range(STEPS):
        token = outputs.logits[:, -1].argmax(-1, keepdim=True)
        outputs = model(input_ids=token, past_key_values=outputs.past_key_values, use_cache=True)
    stamps.append(_now(model))
    return {"prefill": stamps[1] - stamps[0], "decode": stamps[2] - stamps[1]}


def _now(model: VistokenForConditionalGeneration) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _view_table(processor: Any) -> Tensor:
    spec = processor.image_processor.spec
    table: Tensor = spec.view_function().view_table(*spec.towers[0].size)
    return table


def _token_map(model: VistokenForConditionalGeneration, processor: Any) -> Tensor:
    arranged: Tensor = model.model.plan.arrange(_view_table(processor)).token_map
    return arranged
