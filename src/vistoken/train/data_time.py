"""How long training waits for its data, so that a slow disk or loader shows in the metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class DataClock(TrainerCallback):
    """Seconds of optimiser steps, and those of them in which no batch was there."""

    def __init__(self) -> None:
        self._restart()
        self._began: float | None = None

    def wait_begins(self) -> None:
        """A step asks for its batches."""
        self._began = self._asked = time.perf_counter()

    def wait_ends(self) -> None:
        """They are there."""
        self._waited += time.perf_counter() - self._asked

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done; what follows it (logging, checkpoints) is not counted."""
        if self._began is not None:
            self._stepped += time.perf_counter() - self._began
            self._steps += 1
            self._began = None

    def read(self) -> dict[str, float]:
        """Means over the steps since the last call; empty without a step.

        Returns:
            ``step_seconds``, ``data_seconds`` (waiting, per step) and ``data_share`` of the first.
        """
        if not self._steps:
            return {}
        values = {
            "step_seconds": self._stepped / self._steps,
            "data_seconds": self._waited / self._steps,
            "data_share": self._waited / max(self._stepped, 1e-9),
        }
        self._restart()
        return values

    def _restart(self) -> None:
        self._stepped = self._waited = 0.0
        self._steps = 0
        self._asked = 0.0


class TimedData(_Trainer):
    """Mixin before ``Trainer``: records say how long steps waited for their batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_clock = DataClock()
        self.add_callback(self.data_clock)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Batches of one optimiser step, the time until they are there taken."""
        self.data_clock.wait_begins()
        try:
            return super().get_batch_samples(*args, **kwargs)
        finally:
            self.data_clock.wait_ends()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the times to a record of training."""
        if "loss" in logs:
            logs = {**logs, **self.data_clock.read()}
        super().log(logs, start_time)
