"""Contract of importers of releases that are whole models in a layout of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor


class WholeRelease(ABC):
    """Reads one kind of release that has tower, connector and language model in one folder.

    Used as a class, never made an object of. Weights and tokenizer are read by whoever converts;
    what is asked here is what the model is and how its tensors are called.
    """

    variants: ClassVar[tuple[str, ...]]
    """Systems that share this layout and that the files do not tell apart; the first is usual."""

    template_gap: ClassVar[str] = ""
    """Text behind a picture that other text follows (the processor's ``image_gap``)."""

    @staticmethod
    @abstractmethod
    def recipe(config: Mapping[str, Any], where: str, variant: str) -> dict[str, Any]:
        """Fields of a recipe for such a model.

        Args:
            config: The release's ``config.json``.
            where: Names the file in errors.
            variant: One of ``variants``.

        Raises:
            WeightsError: The config asks for something that no part here does.
        """

    @staticmethod
    @abstractmethod
    def state(
        tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str
    ) -> dict[str, dict[str, Tensor]]:
        """What every tensor becomes: its official name -> our names with their tensors.

        Args:
            tensors: Every tensor of the release by its own name.
            config: The release's ``config.json``.
            where: Names the folder in errors.

        Raises:
            WeightsError: A tensor has no place in the model.
        """
