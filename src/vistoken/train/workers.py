"""Batches that worker processes make ahead: the same batches, counts and faults as without them.

Nothing that a batch's making finds out stays in the process that made it: what was left out travels
with the batch, and so does a fault, which stops the run at the step that the batch was for. Order
and resuming are the main process's alone.
"""

from __future__ import annotations

import io
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import get_worker_info

from vistoken.core.errors import MachineError, VistokenError

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

START_METHOD = "fork"
"""How workers are started: they share the model's memory, and nothing is sent to them."""


def check_workers(workers: int) -> None:
    """Refuse worker processes where they cannot be forked off.

    Raises:
        MachineError: The system starts processes in another way.
    """
    usual = multiprocessing.get_all_start_methods()[0]
    if workers and usual != START_METHOD:
        raise MachineError(
            f"workers: {workers} need a system that forks processes, and this one uses {usual}; "
            "set workers: 0"
        )


@dataclass(frozen=True)
class Sealed:
    """A worker's batch, or the fault that it found instead, on its way to the main process.

    The batch is one string of bytes: as tensors, each of its pictures would hold a file open.
    """

    content: bytes
    fault: VistokenError | None = None

    def open(self) -> dict[str, Any]:
        """The batch.

        Raises:
            VistokenError: The fault.
        """
        if self.fault is not None:
            raise self.fault
        # written by a worker of this very process, so its classes are known
        batch: dict[str, Any] = torch.load(io.BytesIO(self.content), weights_only=False)
        return batch


class NumberedBatches:
    """Numbers of items -> batch, sealed where a worker makes it.

    Args:
        items: The items; read in the process that makes the batch.
        collate: Makes a batch, a dict, of a list of items.
    """

    def __init__(self, items: Sequence[Any], collate: Any) -> None:
        self.items = items
        self.collate = collate

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any] | Sealed:
        """The batch of these items."""
        if get_worker_info() is None:
            return self._make(numbers)
        # a signal to all processes of a run is the main one's to answer, after its step
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            made = self._make(numbers)
        except VistokenError as fault:
            return Sealed(b"", fault)
        content = io.BytesIO()
        torch.save(made, content)
        return Sealed(content.getvalue())

    def _make(self, numbers: Sequence[int]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate([self.items[number] for number in numbers])
        return batch


class OpensBatches(_Trainer):
    """Mixin before ``Trainer``: batches of workers are opened when their step asks for them."""

    def get_batch_samples(self, batches: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """Batches of one optimiser step."""
        return super().get_batch_samples(map(_opened, batches), *args, **kwargs)


def _opened(batch: Any) -> Any:
    return batch.open() if isinstance(batch, Sealed) else batch
