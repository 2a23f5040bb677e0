"""Mechanisms that take on another form between training stages without computing otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from vistoken.core.errors import UsageError
from vistoken.core.registry import make_config
from vistoken.models.pipeline import PartSpec

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration, VistokenModel


class Convertible(ABC):
    """A mechanism that can change its form: what it computes stays, what can be trained changes."""

    config: Any

    @abstractmethod
    def convert(self, config: Any) -> None:
        """Take on the form that a configuration asks for.

        Raises:
            UsageError: It cannot be reached from the present one.
        """


def convert_mechanism(
    model: VistokenForConditionalGeneration | VistokenModel, name: str, options: Mapping[str, Any]
) -> None:
    """Change options of a model's decoder mechanism; the model computes the same afterwards.

    Args:
        model: The model; its weights and its configuration change in place.
        name: The mechanism.
        options: Options to change; the others stay.

    Raises:
        UsageError: The model has no such mechanism or option, or the mechanism cannot change.
    """
    inner: Any = model.model if model.base_model_prefix in dict(model.named_children()) else model
    mechanism = next((m for m in inner.stack if m.name == name), None)
    if mechanism is None:
        known = ", ".join(m.name for m in inner.stack) or "none"
        raise UsageError(f"the model has no decoder mechanism {name!r}; it has {known}")
    if not isinstance(mechanism, Convertible) or not is_dataclass(mechanism.config):
        raise UsageError(f"the decoder mechanism {name!r} cannot change its options")
    values = {**asdict(mechanism.config), **options}  # type: ignore[arg-type]
    config = make_config(type(mechanism.config), values, f"mechanism {name!r}")
    mechanism.convert(config)
    specs = [PartSpec.read(s, "mechanism") for s in inner.config.decoder_config["mechanisms"]]
    changed = [
        {"part": s.part, "name": s.name, "options": values if s.part == name else dict(s.options)}
        for s in specs
    ]
    inner.config.decoder_config = {**inner.config.decoder_config, "mechanisms": changed}
