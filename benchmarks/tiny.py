"""What the small experiments share: a tiny frozen ViT, training in one cycle, intervals."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from vistoken.core.parts import Grid


def tiny_vit(size: Grid, patch: int, width: int, layers: int = 2) -> ViTModel:
    """An untrained ViT for pictures of this size; it reads other sizes by interpolation."""
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        initializer_range=width**-0.5,
    )
    return ViTModel(config, add_pooling_layer=False)


def learn(model: nn.Module, steps: int, rate: float, loss_of: Callable[[], Tensor]) -> None:
    """Train with one cycle of the rate."""
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        loss = loss_of()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


def interval(values: list[float]) -> dict[str, float]:
    """Mean and Student's 95 % interval."""
    student = {1: float("inf"), 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
    mean, count = statistics.mean(values), len(values)
    spread = statistics.stdev(values) if count > 1 else float("nan")
    half = student[count] * spread / count**0.5 if count > 1 else float("nan")
    return {"mean": round(mean, 2), "low": round(mean - half, 2), "high": round(mean + half, 2)}


def bootstrap(seeds: Sequence[Tensor], draws: int = 1000) -> dict[str, float]:
    """Mean in points and 95 % interval over seeds drawn anew, and pictures drawn anew in each.

    Args:
        seeds: For each seed, one number per picture (N,), such as 1 for a right answer.
        draws: Resamples.
    """
    chooser = np.random.default_rng(0)
    values = [seed.double().numpy() for seed in seeds]
    means = np.empty(draws)
    for number in range(draws):
        drawn = [values[seed] for seed in chooser.integers(0, len(values), len(values))]
        means[number] = np.mean(
            [chooser.choice(pictures, len(pictures)).mean() for pictures in drawn]
        )
    low, high = np.percentile(means, [2.5, 97.5]).tolist()
    mean = statistics.mean(float(pictures.mean()) for pictures in values)
    return {name: round(100 * v, 2) for name, v in (("mean", mean), ("low", low), ("high", high))}


def seed_parser(doc: str, result: Path) -> argparse.ArgumentParser:
    """The options of every script that runs seeds."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 9))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=result)
    return parser
