"""The stage's own loss on rows that it never trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vistoken.core.errors import DataError
from vistoken.core.objectives import Clock, Objective
from vistoken.data.bad_samples import LeftOut
from vistoken.train.left_out import count_left_out
from vistoken.train.metrics import Meter
from vistoken.train.microbatch import TrainBatch

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration


class Validation:
    """Loss and exact match on held-out samples, the same ones in the same order every time.

    Args:
        objective: The stage's, an instance of its own.
        items: Held-out samples.
        collate: Makes batches of them; None where there are none.
        batch: Samples at a time.
        tell: Told after every pass of the samples that were not measured on.
    """

    def __init__(
        self,
        objective: Objective,
        items: Sequence[Any],
        collate: Any,
        batch: int,
        tell: Callable[[Sequence[LeftOut]], None],
    ) -> None:
        self.objective = objective
        self.items = items
        self.collate = collate
        self.batch = batch
        self.tell = tell

    @torch.no_grad()
    def __call__(self, model: VistokenForConditionalGeneration, clock: Clock) -> dict[str, float]:
        """Mean over all targets as ``val/loss``, with ``val/exact/<kind>``; empty without items.

        ``val/bad_samples`` and the like count what the mean lacks.

        Raises:
            DataError: Nothing was left to measure on.
        """
        if not self.items:
            return {}
        meter = Meter()
        was_training = model.training
        model.eval()
        total, targets = 0.0, 0
        left_out: list[LeftOut] = []
        try:
            for start in range(0, len(self.items), self.batch):
                inputs = self.collate([self.items[n] for n in self._numbers(start)])
                left_out += inputs.get("left_out", ())
                step = self.objective.loss(TrainBatch(model, inputs, meter, clock))
                total += float(step.mean) * step.targets
                targets += step.targets
        finally:
            model.train(was_training)
        exact = {f"val/{k}": v for k, v in meter.read().items() if k.startswith("exact/")}
        self.tell(left_out)
        if left_out and not targets:
            raise DataError(
                f"no validation sample can be used, the first because of this: "
                f"{left_out[0].message}"
            )
        lacks = {f"val/{reason}": float(n) for reason, n in count_left_out(left_out).items()}
        return {"val/loss": total / max(targets, 1), **exact, **lacks}

    def _numbers(self, start: int) -> range:
        return range(start, min(start + self.batch, len(self.items)))
