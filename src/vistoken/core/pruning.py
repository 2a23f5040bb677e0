"""Contract of pruners: parts that look at a model, and at samples, and make it cheaper."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

Need = Literal["weights", "activations", "gradients"]


@dataclass(frozen=True)
class Pruned:
    """What a pruner has decided.

    Args:
        mechanisms: Part specs of decoder mechanisms that the pruned model runs with; one of the
            same name that the model had is replaced.
        files: Further files of the checkpoint: name -> writer of that path.
        summary: What was measured and chosen, as plain data.
    """

    mechanisms: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict[str, Any])
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Pruner(ABC):
    """Looks at a model, optionally at calibration samples, then decides.

    ``needs`` says what is looked at; with ``gradients`` samples come with gradients enabled.
    ``changes_weights`` is False where the pruned model keeps every tensor, so that its checkpoint
    is a copy with another configuration.

    Args:
        config: The pruner's options.
        text_config: Configuration of the language model; options that do not fit it are refused
            here, before any weight is loaded.
    """

    config_class: ClassVar[type]
    needs: ClassVar[frozenset[Need]] = frozenset({"weights"})
    changes_weights: ClassVar[bool] = True

    def __init__(self, config: Any, text_config: Any) -> None:
        self.config = config
        self.text_config = text_config

    @property
    def wants_samples(self) -> bool:
        """Whether calibration samples are looked at."""
        return self.needs != {"weights"}

    def observe(self, model: nn.Module, inputs: Mapping[str, Any]) -> bool:
        """Look at one sample.

        Args:
            model: The model, in evaluation mode.
            inputs: What its forward takes, for one prompt.

        Returns:
            Whether the sample said anything (a prompt without a picture may not).
        """
        return False

    @abstractmethod
    def finish(self, model: nn.Module) -> Pruned:
        """Decide, and change the model's weights if that is the method.

        Args:
            model: The model.

        Raises:
            DataError: Too little was seen to decide.
        """
