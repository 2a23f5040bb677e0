"""The folder of a run: claimed by one configuration, described by `run.json`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from vistoken.core.errors import UsageError
from vistoken.core.files import write_atomically, writing
from vistoken.train.config import RunConfig, dump_config, parse_config
from vistoken.train.log_file import append_record, read_records

MODEL = "model"
METRICS = "metrics.jsonl"
DONE = "done.json"
_CONFIG = "config.yaml"
_RUN = "run.json"
_CHANGES = "changes.jsonl"
# may change between sessions without consent: no weight depends on them
_FREE = (
    "keep",
    "keep_best",
    "log_every",
    "report_to",
    "retrieval_every",
    "retrieval_images",
    "save_every",
    "validate_every",
    "validation",
    "validation_samples",
    "workers",
)
# but with finish: best they choose the weights that a stage ends with
_JUDGING = (
    "keep_best",
    "log_every",
    "retrieval_images",
    "save_every",
    "validation",
    "validation_samples",
)
# a checkpoint of something else: these decide which tensors there are
_FIXED = ("recipe", "start", "objective", "train", "r", "targets", "quantization")


def claim(config: RunConfig, resume: bool, allow_changes: bool = False) -> None:
    """Make the run's folder, or check that it belongs to this configuration.

    Raises:
        UsageError: The folder is in use, or was started with another configuration.
        MachineError: It cannot be written.
    """
    with writing(config.output):
        _claim(config, resume, allow_changes)


def release(config: RunConfig) -> None:
    """Give the folder of a run back that stopped before it trained anything.

    So that a command with a mistake in it can be mended and given again.
    """
    path = config.output / _CONFIG
    if [child.name for child in config.output.glob("*")] == [_CONFIG]:
        path.unlink()
        config.output.rmdir()


def _claim(config: RunConfig, resume: bool, allow_changes: bool) -> None:
    path = config.output / _CONFIG
    if path.is_file():
        if not resume:
            raise UsageError(
                f"{config.output} holds a run already; add --resume to go on with it, "
                "or choose another output"
            )
        # read through the schema: a field that an older version did not write has its default
        before = parse_config(yaml.safe_load(path.read_text("utf-8")), str(path))
        differences = _differences(_plain(before), _plain(config), _free(before, config))
        _check_changes(config, differences, allow_changes)
    elif config.output.exists() and any(config.output.iterdir()):
        raise UsageError(f"{config.output} is not empty and holds no run; choose another output")
    config.output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump_config(config).encode())


def _check_changes(config: RunConfig, changed: list[str], allowed: bool) -> None:
    if not changed:
        return
    said = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
    begun = f"the run in {config.output} was started with another configuration: {said}"
    fixed = [line for line in changed if _is_fixed(line.partition(" ")[0])]
    if fixed and allowed:
        raise UsageError(
            f"{begun}. --allow-changes cannot bridge {fixed[0].partition(' ')[0]}: its checkpoints "
            "hold other tensors; choose another output, and init to start from what is there"
        )
    if not allowed:
        raise UsageError(
            f"{begun}. Undo the change, choose another output, or accept with --allow-changes that "
            "the result will not be that of one uninterrupted run"
        )
    append_record(config.output / _CHANGES, {"time": time.time(), "changed": changed})


def _free(before: RunConfig, after: RunConfig) -> set[str]:
    """Fields that may change without consent."""
    judged = any(stage.finish == "best" for config in (before, after) for stage in config.stages)
    return set(_FREE) - set(_JUDGING if judged else ())


def _is_fixed(place: str) -> bool:
    """Whether a field decides which tensors there are, or is a whole group that comes or goes."""
    parts = place.split(".")
    whole_group = len(parts) == 4 and parts[2] == "groups"
    return parts[-1] in _FIXED or place == "stages" or parts[2:3] == ["mechanisms"] or whole_group


def read_changes(output: Path) -> list[dict[str, Any]]:
    """What was changed when the run was resumed, and when."""
    path = output / _CHANGES
    return read_records(path) if path.is_file() else []


def _plain(config: RunConfig) -> dict[str, Any]:
    plain: dict[str, Any] = config.model_dump(mode="json")
    return plain


def _differences(old: Any, new: Any, free: Collection[str], place: str = "") -> list[str]:
    """Each difference as ``place was this, is that``; stages are addressed by their names."""
    if place.rpartition(".")[2] in free or (place == "cache" and old and new):
        # another folder of features: they are found by a hash of all that decides them, so they
        # are the same; without a cache they are not rounded to its type, which is a change
        return []
    if place == "stages":
        names = [[stage["name"] for stage in stages] for stages in (old, new)]
        if names[0] != names[1]:
            return [f"stages was {', '.join(names[0])}, is {', '.join(names[1])}"]
        old, new = ({stage["name"]: stage for stage in stages} for stages in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        inner = [
            _differences(old.get(k), new.get(k), free, f"{place}.{k}".strip(".")) for k in keys
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
