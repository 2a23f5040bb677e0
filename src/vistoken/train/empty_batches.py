"""Micro-batches of which every sample was left out: no target, so no part in any mean.

Their loss is 0 so that all processes exchange gradients alike. Averaged in, that 0 would weaken the
gradient of the step's other micro-batches and make the logged loss look better than it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from vistoken.train.distributed import summed

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class MeansOfFilled(_Trainer):
    """Mixin before ``Trainer``: means are over the micro-batches with targets, of all processes."""

    _all_by_filled: float = 1.0
    _steps_logged: int = 0
    _empty_steps: int = 0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Batches of one optimiser step; how many of them hold something is counted."""
        batches, targets = super().get_batch_samples(*args, **kwargs)
        filled = sum(not _is_empty(batch) for batch in batches)
        everywhere, filled = summed((len(batches), filled))
        self._all_by_filled = everywhere / filled if filled else 1.0
        self._steps_logged += 1
        self._empty_steps += not filled
        return batches, targets

    def over_filled(self, mean: Tensor) -> Tensor:
        """What a micro-batch's mean adds to a step's, which is divided by all micro-batches."""
        return mean if self._all_by_filled == 1.0 else mean * self._all_by_filled

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Take steps without any target out of the logged loss; without it where all were so."""
        if "loss" in logs:
            filled = self._steps_logged - self._empty_steps
            if filled and self._empty_steps:
                logs = {**logs, "loss": logs["loss"] * self._steps_logged / filled}
            elif self._empty_steps:
                logs = {key: value for key, value in logs.items() if key != "loss"}
            self._steps_logged = self._empty_steps = 0
        super().log(logs, start_time)


def _is_empty(batch: Any) -> bool:
    """Whether every conversation of a collated micro-batch was left out."""
    return "batch" in batch and batch["batch"] is None
