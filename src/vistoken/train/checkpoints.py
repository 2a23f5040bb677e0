"""Checkpoints of a stage: complete or absent, the latest few and the best one kept.

A checkpoint is written beside the others under a hidden name and renamed when every file is on
disk; it is renamed away before it is deleted. So whatever has a checkpoint's name is complete, at
whatever moment the process is killed. One that is replaced by another of its step is put aside
first, and gets its name back if the process dies before the other one has it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistoken.core.files import writing

PREFIX = "checkpoint-"
STATE = "trainer_state.json"
_SCORE = "score.json"
_SAVING = ".saving-"
_GONE = ".gone-"
_ASIDE = ".aside-"
_TRAINING_METRICS = ("loss", "exact/")

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class AtomicCheckpoints(_Trainer):
    """Mixin before ``Trainer``: its checkpoints appear complete, or not at all.

    The best one by the metric ``keep_best`` is kept beside the latest ``args.save_total_limit``.
    """

    keep_best: str | None = None
    _staging: Path | None = None

    def checkpoint_score(self, metric: str) -> float | None:
        """A metric of the weights that are being saved; by default the one logged last.

        None where it was logged before the latest checkpoint: it says nothing of these weights.
        """
        logged = (r[metric] for r in reversed(self._new_records()) if metric in r)
        return next(logged, None)

    def _new_records(self) -> list[dict[str, Any]]:
        """Records since the latest checkpoint before the current step."""
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        since = max((n for n in map(step_of, checkpoints(folder)) if n < step), default=0)
        return [record for record in self.state.log_history if since < record["step"] <= step]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # a checkpoint without a record since the one before is judged by a record of its own
        if self.control.should_save and (self.keep_best or "").startswith(_TRAINING_METRICS):
            self.control.should_log = self.control.should_log or not self._new_records()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        name = f"{PREFIX}{self.state.global_step}"
        staging = folder / f"{_SAVING}{name}"
        metric = self.keep_best
        score = None if metric is None else {metric: self.checkpoint_score(metric)}
        with writing(folder):
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                sweep(folder)
                staging.mkdir()
            self.accelerator.wait_for_everyone()
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            finally:
                self._staging = None
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if score is not None:
                    (staging / name / _SCORE).write_text(json.dumps(score), encoding="utf-8")
                publish(staging / name, folder / name)
                staging.rmdir()
                prune(folder, self.args.save_total_limit, metric)


def publish(written: Path, target: Path) -> None:
    """Give a directory its name once all of it is on disk; one of that name is replaced."""
    for path in written.rglob("*"):
        if path.is_file():
            _flush(path)
    _flush(written)
    aside = target.with_name(f"{_ASIDE}{target.name}")
    if target.exists():  # an earlier session's of the same step
        os.replace(target, aside)
    os.replace(written, target)
    _flush(target.parent)
    if aside.exists():
        discard(aside)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, so that no part of one is ever left under its name."""
    gone = checkpoint.with_name(f"{_GONE}{checkpoint.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(checkpoint, gone)
    shutil.rmtree(gone, ignore_errors=True)


def restore(folder: Path) -> None:
    """Give checkpoints their names back that a killed process had put aside to replace them."""
    for aside in folder.glob(f"{_ASIDE}*"):
        target = folder / aside.name.removeprefix(_ASIDE)
        with contextlib.suppress(FileNotFoundError):  # another process of this run was faster
            discard(aside) if target.exists() else os.replace(aside, target)


def sweep(folder: Path) -> None:
    """Delete what a killed process left half-written or half-deleted."""
    restore(folder)
    for pattern in (f"{_SAVING}*", f"{_GONE}*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, keep: int | None, keep_best: str | None) -> None:
    """Delete all but the latest checkpoints and, if wanted, the best one.

    Args:
        folder: The stage's folder.
        keep: Number of latest ones to keep, at least 1; None keeps all.
        keep_best: Metric by which the best one is kept too.
    """
    if keep is None:
        return
    found = checkpoints(folder)
    kept = set(found[-max(keep, 1) :])
    best = best_checkpoint(folder, keep_best) if keep_best else None
    for checkpoint in found:
        if checkpoint not in kept and checkpoint != (best and best.path):
            discard(checkpoint)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a stage, oldest first."""
    found = [
        (step_of(path), path)
        for path in folder.glob(f"{PREFIX}*")
        if path.name.removeprefix(PREFIX).isdigit() and _read(path / STATE) is not None
    ]
    return [path for _, path in sorted(found)]


def step_of(checkpoint: Path) -> int:
    """Optimiser steps done by a checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage; see :func:`restore`."""
    restore(folder)
    found = checkpoints(folder)
    return found[-1] if found else None


@dataclass(frozen=True)
class Best:
    """The best checkpoint of a stage.

    Attributes:
        path: Its folder.
        step: Optimiser steps done by then.
        metric: What it is best by.
        value: How good that was.
    """

    path: Path
    step: int
    metric: str
    value: float


def best_checkpoint(folder: Path, metric: str) -> Best | None:
    """The checkpoint with the least of a loss or the most of another metric.

    Of equal ones the newest; None where no checkpoint has a (finite) value of this metric.
    """
    best: Best | None = None
    for path in checkpoints(folder):
        value = (_read(path / _SCORE) or {}).get(metric)
        if value is None or not math.isfinite(value):
            continue
        if best is None or (
            value <= best.value if metric.endswith("loss") else value >= best.value
        ):
            best = Best(path, step_of(path), metric, value)
    return best


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values


def _flush(path: Path) -> None:
    """Have the system write a file or a directory's entries to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
