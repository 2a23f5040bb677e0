"""Low-rank adapters on the layers of named parts: one adapter, scoped part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from vistoken.core.errors import UsageError
from vistoken.train.group_settings import GroupName, LoraConfigFields
from vistoken.train.lora_layers import (
    adaptable_layers,
    chosen_layers,
    layer_pattern,
    short_name,
)

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration


def inject_lora(
    model: VistokenForConditionalGeneration, wanted: Mapping[GroupName, LoraConfigFields]
) -> None:
    """Add low-rank adapters to the layers of parts, in place, in float32.

    Args:
        model: The model; it stays of its own class.
        wanted: Rank, scale, dropout and layer names of every part that gets adapters.

    Raises:
        UsageError: A part has no such layer, or the parts differ in their dropout.
    """
    from peft import LoraConfig

    first = next(iter(wanted.values()))
    if any(config.dropout != first.dropout for config in wanted.values()):
        raise UsageError("lora.dropout: the parts share one adapter; give all of them the same")
    patterns = {name: layer_pattern(model, name, config) for name, config in wanted.items()}
    others = {name: c for name, c in wanted.items() if (c.r, c.alpha) != (first.r, first.alpha)}
    model.add_adapter(
        LoraConfig(
            r=first.r,
            lora_alpha=first.alpha,  # type: ignore[arg-type]  # any number works
            lora_dropout=first.dropout,
            target_modules="|".join(patterns.values()),
            rank_pattern={patterns[name]: config.r for name, config in others.items()},
            alpha_pattern={patterns[name]: config.alpha for name, config in others.items()},
            bias="none",
        )
    )
    for name, parameter in model.named_parameters():
        if is_lora(name):
            parameter.data = parameter.data.float()


def check_adapter(
    model: VistokenForConditionalGeneration,
    wanted: Mapping[GroupName, LoraConfigFields],
    stage: str,
) -> None:
    """Refuse settings that the adapter which a model carries does not have.

    Raises:
        UsageError: Another rank or scale, other layers, or a part without adapters.
    """
    (carried,) = model.peft_config.values()
    adapted = {name.rpartition(".lora_")[0] for name in lora_layers(model)}
    for part, config in wanted.items():
        layers = adaptable_layers(model, part)
        own = [name for name in layers if name in adapted]
        if not own:
            raise UsageError(
                f"stage {stage!r} trains LoRA on the part {part!r}, but the adapter of an earlier "
                "stage has none there; give all stages with LoRA the same parts"
            )
        for name in own:
            (rank,) = layers[name].r.values()  # type: ignore[operator]
            (alpha,) = layers[name].lora_alpha.values()  # type: ignore[operator]
            for field, has, asked in (
                ("r", rank, config.r),
                ("alpha", alpha, config.alpha),
                ("dropout", carried.lora_dropout, config.dropout),
            ):
                if has != asked:
                    raise UsageError(
                        f"stage {stage!r}: groups.{part}.lora.{field} is {asked:g}, but the model "
                        f"carries LoRA with {has:g}, which training continues; "
                        f"set {field} to {has:g}"
                    )
        _check_layers(part, own, chosen_layers(model, part, config), stage)


def _check_layers(part: GroupName, own: list[str], asked: list[str], stage: str) -> None:
    differ = sorted(set(own) ^ set(asked))
    if not differ:
        return
    whose = "carries LoRA on" if differ[0] in own else "carries no LoRA on"
    spell = short_name if part == "spatial" else _leaf
    raise UsageError(
        f"stage {stage!r}: the model {whose} {differ[0]}, unlike groups.{part}.lora.targets; "
        "training continues the adapter that is there, so set targets to "
        f"[{', '.join(sorted({spell(name) for name in own}))}]"
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def lora_layers(model: nn.Module) -> list[str]:
    """Names of the adapters' tensors."""
    return [name for name, _ in model.named_parameters() if is_lora(name)]


def is_lora(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name
