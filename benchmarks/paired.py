"""Paired timing: both variants in one process, taking turns, compared pair by pair.

Load, clock changes and caches then hit both alike, and the ratio can be trusted on a machine
whose absolute times cannot.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Times = dict[str, float]
"""Phase -> seconds."""


def take_turns(
    variants: Mapping[str, Callable[[], Times]], *, rounds: int, warmup: int = 2
) -> dict[str, dict[str, list[float]]]:
    """Time variants round by round, each round in another order.

    Args:
        variants: Name -> function that runs once and gives the seconds of each of its phases.
        rounds: Measured rounds.
        warmup: Rounds that are run and forgotten.

    Returns:
        Variant -> phase -> seconds, one entry per round.
    """
    names = list(variants)
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(-warmup, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            for phase, seconds in variants[name]().items():
                if number >= 0:
                    measured[name].setdefault(phase, []).append(seconds)
    return measured


def compare(times: Sequence[float], base: Sequence[float], *, draws: int = 10_000) -> Times:
    """Median ratio times / base of paired times, with a bootstrap interval.

    Args:
        times: Seconds, one per round.
        base: Seconds of the same rounds.
        draws: Bootstrap resamples (with a fixed seed).

    Returns:
        ``ratio`` (median over pairs), ``low`` and ``high`` (95 % interval of that median), and
        the median times ``ms`` and ``base_ms``.
    """
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    chooser = random.Random(0)
    medians = sorted(
        statistics.median(chooser.choices(ratios, k=len(ratios))) for _ in range(draws)
    )
    return {
        "ratio": round(statistics.median(ratios), 4),
        "low": round(medians[int(0.025 * draws)], 4),
        "high": round(medians[int(0.975 * draws) - 1], 4),
        "ms": round(1e3 * statistics.median(times), 2),
        "base_ms": round(1e3 * statistics.median(base), 2),
    }


def now(device: torch.device | str) -> float:
    """Seconds of the clock, once everything that was given to the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores, load and versions, and the GPU that was used, to stand beside a result."""
    used = torch.device(device)
    gpu = {"gpu": torch.cuda.get_device_name(used)} if used.type == "cuda" else {}
    return gpu | {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "date": time.strftime("%Y-%m-%d"),
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def sha256(path: Path) -> str:
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
