"""Contract of importers: how an official release names the parameters of parts here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vistoken.core.parts import Grid
from vistoken.core.whole_release import WholeRelease


class ReleaseKeys(ABC):
    """Reads one kind of official release; used as a class, never made an object of.

    Official names come with the wrappers' prefixes stripped: ``mm_projector.0.weight``,
    ``layers.3.mm_projector.0.weight``.
    """

    part: ClassVar[str]
    """Connector stage that such a release has."""

    mechanism: ClassVar[str | None] = None
    """Decoder mechanism that it has."""

    whole: ClassVar[type[WholeRelease] | None] = None
    """Reader of such releases where they are whole models in a layout of their own."""

    @staticmethod
    @abstractmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether tensors of these official names are such a release's, and nothing else."""

    @staticmethod
    @abstractmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """Options of the connector stage that fit these weights.

        Args:
            tensors: Tensors of connector and mechanism by official name.
            grid: Feature grid (rows, cols) of a view.

        Raises:
            WeightsError: A tensor is missing, or one has no place in any model here.
        """

    @staticmethod
    @abstractmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Our name, relative to the stage -> the official one, for every tensor of the stage."""

    @classmethod
    def chain(
        cls, options: dict[str, Any], tensors: Mapping[str, Tensor]
    ) -> list[dict[str, Any] | str]:
        """The connector chain of such a release; its own stage alone unless it says otherwise.

        Args:
            options: What :meth:`options` gave.
            tensors: As for :meth:`options`.
        """
        return [{"part": cls.part, "options": options}]

    @classmethod
    def views(cls, views: dict[str, Any]) -> dict[str, Any]:
        """The view function of such a release.

        Args:
            views: Part spec of what its config names.

        Raises:
            WeightsError: What the config names cannot be combined with these weights.
        """
        return views

    @classmethod
    def layout(cls, layout: dict[str, Any]) -> dict[str, Any]:
        """The layout of such a release.

        Args:
            layout: Part spec of what its config names.
        """
        return layout

    @classmethod
    def mechanism_options(cls, tensors: Mapping[str, Tensor], layers: int) -> dict[str, Any]:
        """Options of the mechanism that fit these weights.

        Args:
            tensors: As for :meth:`options`.
            layers: Layers of the release's language model.

        Raises:
            WeightsError: They belong to a language model of other layers.
        """
        return {}

    @classmethod
    def configured_options(
        cls, config: Mapping[str, Any], directory: Path
    ) -> dict[str, Any] | None:
        """Options of the mechanism where a release's config asks for it, and no tensor does.

        Args:
            config: The release's ``config.json``.
            directory: Where it lies.

        Returns:
            The options, or None where the config does not ask for the mechanism.

        Raises:
            WeightsError: The release lacks a file that the mechanism needs.
        """
        return None

    @staticmethod
    def mechanism_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Our name, relative to the mechanism -> the official one, for each of its tensors."""
        return {}
