"""What a stage knows of its course, in every checkpoint beside what it has trained."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vistoken.core.files import write_atomically
from vistoken.train.held_out import HeldOut
from vistoken.train.left_out import LeftOutLog
from vistoken.train.metrics import Meter
from vistoken.train.trained import TRAINED, read_trained, write_trained

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

_SESSION = "session.json"


class KeepsSession(_Trainer):
    """Mixin before ``Trainer``: checkpoints hold what is trained and what the records go on from.

    Frozen weights are not written: they are where they came from.
    """

    held_out: HeldOut
    left_out: LeftOutLog
    meter: Meter
    _elapsed_before: float
    _began: float

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, earlier sessions included."""
        return self._elapsed_before + time.perf_counter() - self._began

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write what is trained, not the frozen weights."""
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_trained(self.model, folder / TRAINED)
        session = {
            "elapsed": self.elapsed,
            "logged": self.held_out.logged,
            "meter": self.meter.state(),
            "left_out": self.left_out.state(),
        }
        write_atomically(folder / _SESSION, json.dumps(session).encode())

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Read what :meth:`_save` wrote."""
        folder = Path(resume_from_checkpoint)
        read_trained(self.model, folder / TRAINED)
        session = json.loads((folder / _SESSION).read_text(encoding="utf-8"))
        self._elapsed_before = session["elapsed"]
        self.held_out.logged = session.get("logged", 0)
        self._began = time.perf_counter()
        self.meter.load(session["meter"])
        self.left_out.load(session.get("left_out", {"counts": {}, "lines": 0}))
