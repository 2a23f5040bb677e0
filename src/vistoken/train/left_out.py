"""What a stage does not train on: counted, written down with ids, and the same after a resume.

What validation leaves out is the same in every pass: a stage writes it down once, as of the split
`validation`, and counts it apart from what training leaves out.

Batches carry what was left out while they were made. So it is counted when a batch is trained on,
not when a loader fetched it ahead, and a checkpoint's counts are those of its steps. Of several
processes each reads batches of its own; their records are put together in the order of the ranks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch.distributed as dist

from vistoken.core.files import write_atomically, writing
from vistoken.data.bad_samples import LeftOut, Reason
from vistoken.train.distributed import is_main

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

LEFT_OUT = "left_out.jsonl"

Split = Literal["train", "validation"]


class LeftOutLog:
    """Counts of a stage, and its lines in a file that all stages share.

    Args:
        path: The file, one JSON object per line: stage, step, split and what a
            :class:`LeftOut` says.
        stage: Name of the stage.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage
        self.opening: list[LeftOut] = []
        self._counts: Counter[Reason] = Counter()
        self._lines = 0
        self._begun = False
        self._validation: dict[Reason, int] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Samples and rounds left out so far, by reason."""
        opening = [] if self._begun else self.opening
        return {
            reason: self._counts[reason] + count
            for reason, count in count_left_out(opening).items()
        }

    @property
    def validation_counts(self) -> dict[str, int]:
        """Samples and rounds that validation lacks, by reason; empty before the first one."""
        return {str(reason): count for reason, count in (self._validation or {}).items()}

    def begin(self) -> None:
        """Start the stage, unless :meth:`load` did: its first lines are the rows no file gives."""
        if not self._begun:
            self._keep(0)
            self._begun = True
            self.add(0, self.opening)

    def add(self, step: int, left_out: Sequence[LeftOut]) -> None:
        """Count and write down what was left out of a step."""
        self._counts.update(count_left_out(left_out))
        self._write(step, left_out, "train")

    def add_validation(self, step: int, left_out: Sequence[LeftOut]) -> None:
        """Count what a validation lacks; written down at the stage's first."""
        if self._validation is None:
            self._write(step, left_out, "validation")
        self._validation = count_left_out(left_out)

    def _write(self, step: int, left_out: Sequence[LeftOut], split: Split) -> None:
        self._lines += len(left_out)
        if left_out and is_main():
            place = {"stage": self.stage, "step": step, "split": split}
            lines = [{**place, **asdict(one)} for one in left_out]
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in lines))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "counts": dict(self._counts),
            "lines": self._lines,
            "validation": self._validation,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; lines of steps that are done again are taken out."""
        self._counts = Counter(state["counts"])
        self._lines = state["lines"]
        self._validation = state.get("validation")
        self._begun = True
        self._keep(self._lines)

    def _keep(self, lines: int) -> None:
        """Keep so many of the stage's lines."""
        if not self.path.is_file() or not is_main():
            return
        kept: list[str] = []
        own = 0
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            stage = _stage_of(line)
            own += stage == self.stage
            # a line that a crash cut off has no stage
            if stage is not None and (stage != self.stage or own <= lines):
                kept.append(line)
        write_atomically(self.path, "".join(kept).encode())


class RecordsLeftOut(_Trainer):
    """Mixin before ``Trainer``: what batches left out is counted with the step they are for."""

    left_out: LeftOutLog

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Batches of one optimiser step, what they left out recorded."""
        self.left_out.begin()
        batches, targets = super().get_batch_samples(*args, **kwargs)
        told = [one for batch in batches for one in batch.get("left_out", ())]
        self.left_out.add(self.state.global_step + 1, _of_all_processes(told))
        return batches, targets


def _of_all_processes(told: list[LeftOut]) -> list[LeftOut]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return told
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, told)
    return [one for part in gathered for one in part]


def count_left_out(left_out: Sequence[LeftOut]) -> dict[Reason, int]:
    """Samples and rounds by reason, every reason named."""
    counts: dict[Reason, int] = dict.fromkeys(get_args(Reason), 0)
    for one in left_out:
        counts[one.reason] += one.count
    return counts


def _stage_of(line: str) -> str | None:
    """Whose line it is; None for one that a crash cut off."""
    try:
        stage = json.loads(line)["stage"]
    except (ValueError, KeyError, TypeError):
        return None
    return stage if isinstance(stage, str) else None
