"""From a configuration's list of mechanisms to a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from vistoken.core.registry import load_part, make_config
from vistoken.models.decoder.mechanism import MechanismStack
from vistoken.models.pipeline import PartSpec


def build_stack(
    specs: Sequence[str | Mapping[str, Any]], text_config: PretrainedConfig
) -> MechanismStack:
    """Build the mechanisms that a decoder configuration names.

    Args:
        specs: Part specs, in the order in which they act.
        text_config: Configuration of the language model they act in.

    Raises:
        UsageError: An unknown mechanism or option, or the same name twice.
    """
    mechanisms = []
    for value in specs:
        spec = PartSpec.read(value, "mechanism")
        part = load_part("mechanism", spec.part)
        where = f"mechanism {spec.part!r}"
        mechanisms.append(
            part(make_config(part.config_class, dict(spec.options), where), text_config)
        )
    return MechanismStack(mechanisms)
