"""The folder of a run: claimed by one configuration, described by `run.json`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from vistoken.core.errors import UsageError
from vistoken.core.files import writing
from vistoken.train.config import RunConfig, dump_config, parse_config
from vistoken.train.trained import write_atomically

MODEL = "model"
METRICS = "metrics.jsonl"
DONE = "done.json"
_CONFIG = "config.yaml"
_RUN = "run.json"
# changing these does not change what is learned
_FREE = (
    "log_every",
    "save_every",
    "keep",
    "retrieval_every",
    "retrieval_images",
    "minutes",
    "report_to",
)


def claim(config: RunConfig, resume: bool) -> None:
    """Make the run's folder, or check that it belongs to this configuration.

    Raises:
        UsageError: The folder is in use, or was started with another configuration.
        MachineError: It cannot be written.
    """
    with writing(config.output):
        _claim(config, resume)


def _claim(config: RunConfig, resume: bool) -> None:
    path = config.output / _CONFIG
    if path.is_file():
        if not resume:
            raise UsageError(
                f"{config.output} holds a run already; add --resume to go on with it, "
                "or choose another output"
            )
        # read through the schema: a field that an older version did not write has its default
        before = parse_config(yaml.safe_load(path.read_text("utf-8")), str(path))
        changed = _differences(_plain(before), _plain(config))
        if changed:
            raise UsageError(
                f"the run in {config.output} was started with another configuration: "
                f"{'; '.join(changed[:5])}. Undo the change or choose another output"
            )
    elif config.output.exists() and any(config.output.iterdir()):
        raise UsageError(f"{config.output} is not empty and holds no run; choose another output")
    config.output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump_config(config).encode())


def _plain(config: RunConfig) -> dict[str, Any]:
    plain: dict[str, Any] = config.model_dump(mode="json")
    return plain


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    if place.rpartition(".")[2] in (*_FREE, "cache"):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        inner = [_differences(old.get(k), new.get(k), f"{place}.{k}".strip(".")) for k in keys]
        return [line for lines in inner for line in lines]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inner = [
            _differences(a, b, f"{place}.{i}")
            for i, (a, b) in enumerate(zip(old, new, strict=True))
        ]
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{place} was {old}, is {new}"]


def describe_run(config: RunConfig, device: torch.device, bf16: bool) -> dict[str, Any]:
    """Versions, seed and machine of a run, for `run.json`."""
    return {
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("vistoken", "torch", "transformers", "peft", "accelerate")
        }
        | {"python": platform.python_version()},
        "seed": config.seed,
        "device": str(device),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "bfloat16": bf16,
        "git": _git_state(),
    }


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json`, whole or not at all."""
    write_atomically(output / _RUN, (json.dumps(record, indent=2) + "\n").encode())


def _git_state() -> dict[str, Any] | None:
    """Commit of this source tree and whether it is changed; None outside a repository."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *args],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
