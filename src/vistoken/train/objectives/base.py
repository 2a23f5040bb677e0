"""What a stage optimises, as a part: its data, its batches and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from vistoken.data.reading import BadSamples
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor
    from vistoken.train.alignment import NameSpace
    from vistoken.train.encoders import Encoder
    from vistoken.train.metrics import Meter
    from vistoken.train.settings import StageConfig


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
class StageItems:
    """What a stage draws batches from.

    Attributes:
        items: One entry per sample of the data loader.
        images: Every picture in them, hardly one more than once.
        lengths: Grouping length of each item, negative without a picture; empty where unknown.
    """

    items: Sequence[Any]
    images: Sequence[Path]
    lengths: Sequence[int] = ()


class Objective(ABC):
    """Data, batches and loss of one kind of training.

    Args:
        names: Words of the annotations; None where nothing asked for them.
    """

    runs_language_model: ClassVar[bool] = True
    needs_names: ClassVar[bool] = False
    unit: ClassVar[str] = "questions"

    def __init__(self, names: NameSpace | None) -> None:
        self.names = names

    @classmethod
    @abstractmethod
    def read(
        cls, files: Sequence[Path], root: Path | None, stage: StageConfig, bad: BadSamples
    ) -> StageItems:
        """Read data files."""

    @classmethod
    @abstractmethod
    def collator(
        cls, stage: StageConfig, processor: VistokenProcessor, encode: Encoder, bad: BadSamples
    ) -> Any:
        """Make what turns a list of items into a batch."""

    @abstractmethod
    def loss(
        self, model: VistokenForConditionalGeneration, inputs: dict[str, Any], meter: Meter
    ) -> StepLoss:
        """Loss of a batch; counts it in the meter."""

    def scores(self) -> dict[str, float]:
        """Scores of the latest batch."""
        return {}
