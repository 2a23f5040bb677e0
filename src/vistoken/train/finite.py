"""A loss or a gradient that is no number stops the stage before it changes a weight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vistoken.core.errors import DataError
from vistoken.train.checkpoints import last_checkpoint
from vistoken.train.settings import StageConfig

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

SAMPLES = "samples"
"""Key of a batch: what its samples are called in errors."""
_NAMED = 8


class FiniteSteps(_Trainer):
    """Mixin before ``Trainer``: every optimiser step has a finite loss and a finite gradient."""

    stage: StageConfig
    _seen: tuple[str, ...] = ()

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch."""
        self._seen = (*self._seen, *inputs.get(SAMPLES, ()))
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            # of the samples of a step, those of this micro-batch are at fault
            raise self._fault("the loss", loss.item(), tuple(inputs.get(SAMPLES, ())))
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and not math.isfinite(float(norm)):
            raise self._fault("the gradient's norm", float(norm), self._seen)
        self._seen = ()
        return norm

    def _fault(self, what: str, value: float, samples: tuple[str, ...]) -> DataError:
        named = ", ".join(samples[:_NAMED]) or "unknown samples"
        more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
        good = last_checkpoint(Path(str(self.args.output_dir)))
        kept = "no checkpoint was written yet" if good is None else f"{good} is the last good one"
        return DataError(
            f"stage {self.stage.name!r}: {what} is {value} at step {self.state.global_step}, for "
            f"{named}{more}; look at these samples or lower the learning rate ({kept})"
        )


class NamedBatches:
    """A collator whose batches say what their samples are called.

    Args:
        collate: Makes a batch, a dict, of a list of items.
        names: What the samples of a list of items are called.
    """

    def __init__(self, collate: Any, names: Any) -> None:
        self.collate = collate
        self.names = names

    def __call__(self, items: Any) -> dict[str, Any]:
        """The batch, with names."""
        return {**self.collate(items), SAMPLES: tuple(self.names(items))}
