"""What an arm costs: parameters, FLOPs, and time beside the baseline, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vistoken.core.tables import VIEW
from vistoken.models.build import meta_model
from vistoken.models.cost import measure_cost
from vistoken.models.pipeline import anchor_rows
from vistoken.models.recipe import Recipe
from vistoken.train.groups import part_parameters

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor

TEXT_TOKENS = 64
"""Tokens of text beside the picture in every count and measurement."""


def predict(recipe: Recipe, picture: tuple[int, int] | None = None) -> dict[str, Any]:
    """Parameters and FLOPs of an arm for one picture and some text, from shapes alone.

    Args:
        recipe: The arm.
        picture: (height, width) of the picture; the tower's own size when None.
    """
    model = meta_model(recipe)
    cost = measure_cost(model, recipe.pipeline(model.config), picture, TEXT_TOKENS)
    groups = {
        name: sum(parameter.numel() for parameter in parameters.values())
        for name, parameters in part_parameters(model).items()
    }
    forward = cost.connect_flops + cost.prefill_flops
    return {
        "parameters": groups,
        "views": cost.views,
        "visual_tokens": cost.visual_tokens,
        "text_tokens": TEXT_TOKENS,
        "encode_flops": sum(cost.encode_flops.values()),
        "connect_flops": cost.connect_flops,
        "prefill_flops": cost.prefill_flops,
        # forward and twice as much backward; towers are frozen and cached
        "train_flops": 3 * forward * _pictures(recipe),
    }


def latency_ratio(
    arm: tuple[VistokenForConditionalGeneration, VistokenProcessor],
    baseline: tuple[VistokenForConditionalGeneration, VistokenProcessor],
    rounds: int,
    warmup: int = 3,
    picture: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Time of one picture and some text, arm over baseline, both taking turns in one process.

    Args:
        arm: Model and processor.
        baseline: Those of the baseline.
        rounds: Measured rounds.
        warmup: Rounds that are run and forgotten.
        picture: (height, width) of the picture, timed from the decoded picture on. None times
            connector and prefill alone: towers and views are the same in every arm.

    Returns:
        ``value`` (median of the pairs' ratios) with a 95 % bootstrap interval, and the medians of
        both in milliseconds.
    """
    runs = [
        _timed(*side) if picture is None else _whole(*side, picture) for side in (arm, baseline)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-warmup, rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for which in order:
            seconds = runs[which]()
            if number >= 0:
                times[which].append(seconds)
    ratios = np.array([a / b for a, b in zip(*times, strict=True)])
    drawn = np.random.default_rng(0).choice(ratios, (2000, rounds))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {
        "value": round(float(np.median(ratios)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "ms": round(1e3 * statistics.median(times[0]), 3),
        "baseline_ms": round(1e3 * statistics.median(times[1]), 3),
        "rounds": rounds,
    }


def _pictures(recipe: Recipe) -> int:
    """Pictures that the language model is trained on."""
    stages = (recipe.train or {}).get("stages", [])
    return sum(
        (stage.get("steps") or 0) * stage.get("images_per_step", 1) * stage.get("accumulate", 1)
        for stage in stages
        if stage.get("objective", "next-token") != "name-alignment"
    )


def _timed(
    model: VistokenForConditionalGeneration, processor: VistokenProcessor
) -> Callable[[], float]:
    """A function that runs connector and prefill once and gives its seconds."""
    table, features = _features(model, processor)
    device = model.device
    text = torch.full((1, TEXT_TOKENS), 3, device=device)
    count = len(processor.image_processor.plan.arrange(table).order)
    image = torch.full((1, count), processor.image_token_id, device=device)
    ids = torch.cat([image, text], dim=1)

    @torch.inference_mode()
    def run() -> float:
        begun = _now(device)
        encoded = model.get_image_features(view_table=table, tower_features=features)
        model(input_ids=ids, mm_encoder_outputs={"image": encoded}, logits_to_keep=1)
        return _now(device) - begun

    return run


def _whole(
    model: VistokenForConditionalGeneration,
    processor: VistokenProcessor,
    size: tuple[int, int],
) -> Callable[[], float]:
    """As :func:`_timed`, from the decoded picture on."""
    levels = np.random.default_rng(0).integers(0, 256, (size[0] // 16 + 1, size[1] // 16 + 1, 3))
    small = Image.fromarray(levels.astype(np.uint8))
    image = small.resize(size[::-1], Image.Resampling.BILINEAR)
    device = model.device
    text = torch.full((1, TEXT_TOKENS), 3, device=device)

    @torch.inference_mode()
    def run() -> float:
        begun = _now(device)
        inputs = processor.image_processor(image)
        pixels = [view.to(device, model.dtype) for view in inputs["pixel_values"]]
        encoded = model.get_image_features(pixels, inputs["view_table"])
        count = len(encoded.pooler_output[0])
        tokens = torch.full((1, count), processor.image_token_id, device=device)
        ids = torch.cat([tokens, text], dim=1)
        model(input_ids=ids, mm_encoder_outputs={"image": encoded}, logits_to_keep=1)
        return _now(device) - begun

    return run


def _features(
    model: VistokenForConditionalGeneration, processor: VistokenProcessor
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Views of a picture of the nominal size, and features of noise: time does not depend on it."""
    table = processor.image_processor.view_table(*model.model.plan.spec.towers[0].size)
    generator = torch.Generator().manual_seed(0)
    sizes = zip(VIEW.get(table, "height").tolist(), VIEW.get(table, "width").tolist(), strict=True)
    pixels = [
        torch.randn(3, int(height), int(width), generator=generator).to(model.device, model.dtype)
        for height, width in sizes
    ]
    with torch.inference_mode():
        features, _ = model.model.encode(pixels, table)
    return table, features[: len(anchor_rows(table))]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
