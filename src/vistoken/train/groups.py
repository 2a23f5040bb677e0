"""Named parts of a model and how each is trained: frozen, in full, or through LoRA.

A part is a set of modules, not a pattern over parameter names: a tensor belongs to exactly one
part because it belongs to exactly one module tree, and that is checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vistoken.core.errors import UsageError
from vistoken.models.quantize import quantize_language_model
from vistoken.train.config import GROUP_NAMES, GroupConfig, GroupName, StageConfig
from vistoken.train.lora import check_adapter, inject_lora, is_lora, lora_layers

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration

Named = dict[str, nn.Parameter]


@dataclass(frozen=True)
class GroupRow:
    """One line of the table that is shown before training.

    Attributes:
        name: Part.
        train: Train mode.
        lr: Learning rate, None when frozen.
        trainable: Parameters that are trained.
        total: All parameters of the part, adapters included.
    """

    name: GroupName
    train: str
    lr: float | None
    trainable: int
    total: int


def part_parameters(model: VistokenForConditionalGeneration) -> dict[GroupName, Named]:
    """All parameters of a model by named part; every one is in exactly one part.

    Returns:
        ``vision``: the towers; ``spatial``: what a connector stage declares as its spatial
        modules; ``connector``: the rest of the projector, and the layout; ``mechanisms``: the
        weights of decoder mechanisms; ``language``: the language model with its head, and
        adapters.
    """
    inner = model.model
    spatial = {
        id(parameter)
        for stage in inner.multi_modal_projector.stages
        for module in stage.spatial_modules()
        for parameter in module.parameters()
    }
    of = {id(parameter): "vision" for parameter in inner.vision_tower.parameters()}
    for module in (inner.multi_modal_projector, inner.layout):
        for parameter in module.parameters():
            of[id(parameter)] = "spatial" if id(parameter) in spatial else "connector"
    for mechanism in inner.stack:
        if isinstance(mechanism, nn.Module):
            of |= {id(parameter): "mechanisms" for parameter in mechanism.parameters()}
    parts: dict[GroupName, Named] = {name: {} for name in GROUP_NAMES}
    for name, parameter in model.named_parameters():
        parts[of.get(id(parameter), "language")][name] = parameter  # type: ignore[index]
    return parts


def apply_groups(model: VistokenForConditionalGeneration, stage: StageConfig) -> list[GroupRow]:
    """Set what is trained, injecting LoRA where a stage asks for it.

    Weights that are trained are kept in float32; frozen ones keep their type.

    Raises:
        UsageError: A group asks for a part that this model does not have.
    """
    language = stage.group("language")
    wanted = {
        name: stage.group(name).lora for name in GROUP_NAMES if stage.group(name).train == "lora"
    }
    if wanted and not lora_layers(model):
        if language.quantization is not None:
            quantize_language_model(model, language.quantization)
            # PEFT picks its adapter for 4-bit layers by this mark
            model.is_loaded_in_4bit = language.quantization == "nf4"
        inject_lora(model, wanted)
    elif wanted:
        check_adapter(model, wanted, stage.name)
    parts = part_parameters(model)
    for name, parameters in parts.items():
        group = stage.group(name)
        if group.train != "frozen" and not parameters:
            raise UsageError(
                f"stage {stage.name!r} trains the part {name!r}, but this model has none; "
                f"set groups.{name}.train: frozen"
            )
        if group.train == "full" and any(map(is_lora, parameters)):
            raise UsageError(
                f"stage {stage.name!r} trains the part {name!r} in full, but it carries LoRA "
                "weights of an earlier stage; merge them first"
            )
        for key, parameter in parameters.items():
            trained = group.train == "full" or (group.train == "lora" and is_lora(key))
            parameter.requires_grad_(trained)
            if trained and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
    return group_table(model, stage)


def optimizer_groups(
    model: VistokenForConditionalGeneration, stage: StageConfig
) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser: each trained part, split by weight decay.

    Raises:
        RuntimeError: A trainable tensor is in no group, or in two.
    """
    groups: list[dict[str, Any]] = []
    for name, parameters in part_parameters(model).items():
        config = stage.group(name)
        trained = [p for p in parameters.values() if p.requires_grad]
        for suffix, decay, members in (
            ("", config.weight_decay, [p for p in trained if p.dim() > 1]),
            ("-no-decay", 0.0, [p for p in trained if p.dim() <= 1]),
        ):
            if members:
                groups.append(
                    {
                        "name": name + suffix,
                        "params": members,
                        "lr": config.lr,
                        "weight_decay": decay,
                    }
                )
    listed = [id(p) for group in groups for p in group["params"]]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if len(listed) != len(set(listed)) or set(listed) != trainable:
        raise RuntimeError("a trainable tensor is not in exactly one parameter group")
    return groups


def group_table(model: VistokenForConditionalGeneration, stage: StageConfig) -> list[GroupRow]:
    """What is trained, part by part."""
    rows = []
    for name, parameters in part_parameters(model).items():
        group = stage.group(name)
        rows.append(
            GroupRow(
                name,
                group.train,
                None if group.train == "frozen" else group.lr,
                _count(p for p in parameters.values() if p.requires_grad),
                _count(parameters.values()),
            )
        )
    return rows


def format_table(rows: Iterable[GroupRow]) -> str:
    """The table as plain text."""
    lines = [f"{'part':<10} {'train':<7} {'lr':>9} {'trained':>13} {'of':>13}"]
    for row in rows:
        rate = "-" if row.lr is None else f"{row.lr:.1e}"
        lines.append(
            f"{row.name:<10} {row.train:<7} {rate:>9} {row.trainable:>13,} {row.total:>13,}"
        )
    return "\n".join(lines)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


__all__ = [
    "GroupConfig",
    "GroupRow",
    "apply_groups",
    "format_table",
    "group_table",
    "optimizer_groups",
    "part_parameters",
]
