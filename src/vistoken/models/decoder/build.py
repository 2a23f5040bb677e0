"""From a configuration's list of mechanisms to a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vistoken.core.registry import load_part, make_config
from vistoken.models.decoder.families import check_family
from vistoken.models.decoder.mechanism import MechanismContext
from vistoken.models.decoder.stack import MechanismStack
from vistoken.models.pipeline import PartSpec


def build_stack(
    specs: Sequence[str | Mapping[str, Any]], context: MechanismContext
) -> MechanismStack:
    """Build the mechanisms that a decoder configuration names.

    Args:
        specs: Part specs, in the order in which they act.
        context: What the model around them is.

    Raises:
        UsageError: An unknown mechanism or option, the same name twice, or a language model
            family that the loop cannot drive.
    """
    mechanisms = []
    for value in specs:
        spec = PartSpec.read(value, "mechanism")
        part = load_part("mechanism", spec.part)
        check_family(context.text_config)
        where = f"mechanism {spec.part!r}"
        mechanisms.append(part(make_config(part.config_class, dict(spec.options), where), context))
    return MechanismStack(mechanisms)
