"""Pruning a trained LLaVA with YOPO at a given ratio, from cached features."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vistoken.api import load
from vistoken.eval.prompts import PromptMaker
from vistoken.eval.tasks import read_tasks
from vistoken.models.pruning import run_pruner, save_pruned
from vistoken.systems.yopo.pruner import YopoPruner, YopoPrunerConfig
from vistoken.train.cache import FeatureCache, fast_compute
from vistoken.train.encoders import CachedEncoder, Encoder, PixelEncoder


def prune(checkpoint: Path, keep: float, out: Path, options: argparse.Namespace) -> Path:
    """Write a copy of a checkpoint that keeps a share of layers and heads for visual tokens.

    The calibration looks at one question about each of the first training pictures.
    """
    if (out / "config.json").is_file():
        return out
    model, processor = load(checkpoint, dtype=fast_compute())
    text: Any = model.config.text_config
    config = YopoPrunerConfig(
        heads=keep * text.num_attention_heads, layer_cut=round(keep * text.num_hidden_layers)
    )
    encode: Encoder = PixelEncoder(processor)
    if options.cache is not None:
        encode = CachedEncoder(FeatureCache(options.cache, model, processor, fast_compute()))
    (task,) = read_tasks([options.data / "train.jsonl"], limit=options.samples)
    see = PromptMaker(model, processor, encode)

    def prompts() -> Iterator[dict[str, Any]]:
        for group in task.groups:
            (asked,) = see(group[:1])
            yield {
                "input_ids": torch.tensor([asked.prompt], device=model.device),
                "mm_encoder_outputs": {"image": asked.features},
            }

    print(f"calibrating {out.name}", flush=True)
    pruned = run_pruner(YopoPruner(config, text), model, prompts())
    save_pruned(model, processor, pruned, out, checkpoint)
    kept = json.dumps(pruned.summary["heads_kept"])
    print(f"layers {config.layer_cut}, heads {kept}", flush=True)
    return out
