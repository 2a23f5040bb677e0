"""SIGINT and SIGTERM: the step is finished, a checkpoint written, and the run ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Ends a stage at the next step's end once a signal has come; a second one acts at once.

    Attributes:
        received: The signal, None as long as there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over; outside the main thread nothing is taken over."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # a signal that whoever started us has us ignore (nohup, a job in the background) stays so
        wanted = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._take) for number in wanted}
        try:
            yield
        finally:
            self._give_back()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop; of several processes, all do when one was told to."""
        if dist.is_initialized():
            told = torch.tensor(int(self.received or 0), device=args.device)
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
            self.received = signal.Signals(int(told)) if int(told) else None
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._give_back()
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
        logger.warning(
            "%s: finishing the step and saving a checkpoint; once more to stop at once",
            self.received.name,
        )

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
