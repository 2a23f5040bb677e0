"""Which models vLLM cannot run, from their parts' flags: known before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from vistoken.core.errors import UsageError
from vistoken.core.parts import PartFlags
from vistoken.core.registry import load_part
from vistoken.models.configuration import VistokenConfig
from vistoken.models.pipeline import PartSpec, PipelineSpec, find_stage_kind

_REASONS = {
    "views": "its views cannot be known from a picture's size alone",
    "mechanism": "it acts between the language model's layers, which vLLM replaces by its own",
}
_PROMPT = "its tokens depend on the question, which vLLM does not hand to the vision part"
_OTHER = "it needs inputs that vLLM does not hand to the vision part"


def part_flags(
    config: VistokenConfig, views: PartSpec | None
) -> Iterator[tuple[str, str, PartFlags]]:
    """Kind, name and flags of every part of a model.

    Args:
        config: The model's configuration.
        views: Its processor's view function; None where only the configuration is at hand.
    """
    pipeline = config.pipeline()
    named = [(find_stage_kind(spec.part), spec.part) for spec in pipeline.connector]
    named.append(("layout", pipeline.layout.part))
    if views is not None:
        named.insert(0, ("views", views.part))
    for spec in (config.decoder_config or {}).get("mechanisms", []):
        named.append(("mechanism", PartSpec.read(spec, "mechanism").part))
    for kind, name in named:
        yield kind, name, load_part(kind, name).flags


def vllm_refusals(config: VistokenConfig, views: PartSpec | None = None) -> list[str]:
    """Why vLLM cannot run a model, one phrase per part that says so; empty when it can."""
    return [
        f"{kind} part {name!r}: {_PROMPT if flags.prompt_dependent else _REASONS.get(kind, _OTHER)}"
        for kind, name, flags in part_flags(config, views)
        if not flags.vllm
    ]


def refuse_for_vllm(config: VistokenConfig, pipeline: PipelineSpec | None, where: str) -> None:
    """Refuse a model with a part that vLLM cannot run.

    Args:
        config: The model's configuration.
        pipeline: Its processor's pipeline, which knows the view function.
        where: Names the model in the error.

    Raises:
        UsageError: The parts and the reasons.
    """
    found = vllm_refusals(config, pipeline.views if pipeline is not None else None)
    if found:
        raise UsageError(
            f"vLLM cannot run {where} ({'; '.join(found)}); serve it with --engine embedded"
        )
