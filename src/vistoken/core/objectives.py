"""Contract of the part kind ``objective``: what a stage of training optimises.

Training reads the data, makes the batches and runs the model; an objective says which rows it
wants and turns what the model did into a loss. So a system brings one without knowing how the
library packs, caches or averages, and without importing training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

Rows = Literal["conversations", "scenes"]
"""What a batch is made of: tokenised conversations, or pictures with annotated objects."""


@dataclass(frozen=True)
class Clock:
    """How far a stage is.

    Attributes:
        step: Optimiser steps done.
        total: Optimiser steps of the stage.
        epoch: Passes over the data, with the fraction.
    """

    step: int
    total: int
    epoch: float


@dataclass(frozen=True)
class StepLoss:
    """Loss of a micro-batch.

    Attributes:
        mean: 0-d, mean over its targets.
        targets: Number of targets, its weight where steps are averaged by token.
    """

    mean: Tensor
    targets: int


@dataclass(frozen=True)
class TargetStates:
    """The decoder's states at the supervised positions of a micro-batch.

    Attributes:
        hidden: (M, D), each predicts one target.
        targets: (M,) int64.
        aux: 0-d, what decoder mechanisms add to the loss; None without any.
    """

    hidden: Tensor
    targets: Tensor
    aux: Tensor | None = None


class MicroBatch(Protocol):
    """A batch, and the ways to run the model on it."""

    @property
    def model(self) -> Any:
        """The model, for passes of another kind."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the collator made: ``pictures``, and ``batch`` or ``scenes``."""

    @property
    def clock(self) -> Clock:
        """How far the stage is."""

    def states(self) -> TargetStates | None:
        """Run the model; None where every sample of the micro-batch was left out."""

    def uncounted(self) -> MicroBatch:
        """The same batch for a further pass, of which the metrics know nothing."""

    def cross_entropy(self, states: TargetStates) -> StepLoss:
        """Mean cross-entropy of the targets, a slice of the logits at a time, plus ``aux``.

        What the head predicts is counted as right or wrong.
        """

    def nothing(self) -> StepLoss:
        """The loss of an empty micro-batch: 0, with a gradient of 0 for all that is trained."""

    def count(self, questions: int, tokens: int, supervised: int, visual: int) -> None:
        """Count questions and tokens for the metrics, where :meth:`cross_entropy` is not used."""


class Objective(ABC):
    """Loss of one kind of training.

    ``rows`` says what the batches are made of; ``runs_language_model`` whether that model is run
    at all; ``needs_names`` whether the words of the annotations are wanted; ``unit`` what the
    metrics count. An objective with ``conversations`` may use everything of :class:`MicroBatch`.

    Args:
        names: Words of the annotations as points among the input embeddings; None where nothing
            asked for them.
    """

    rows: ClassVar[Rows] = "conversations"
    runs_language_model: ClassVar[bool] = True
    needs_names: ClassVar[bool] = False
    unit: ClassVar[str] = "questions"

    def __init__(self, names: Any = None) -> None:
        self.names = names

    @abstractmethod
    def loss(self, batch: MicroBatch) -> StepLoss:
        """Loss of a micro-batch."""

    def scores(self) -> dict[str, float]:
        """Scores of the latest micro-batch, for the metrics."""
        return {}
