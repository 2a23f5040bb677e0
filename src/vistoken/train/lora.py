"""Low-rank adapters on the linear layers of named parts: one adapter, scoped part by part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from vistoken.core.errors import UsageError
from vistoken.train.group_settings import GroupName, LoraConfigFields

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration

_TREES: dict[GroupName, tuple[str, ...]] = {
    "vision": ("model.vision_tower.",),
    "connector": ("model.multi_modal_projector.", "model.layout."),
    "language": ("model.language_model.",),
}
"""Where the layers of each part stand; the spatial part's kernels are convolutions."""


def inject_lora(
    model: VistokenForConditionalGeneration, wanted: Mapping[GroupName, LoraConfigFields]
) -> None:
    """Add low-rank adapters to the linear layers of parts, in place, in float32.

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
    patterns = {name: _pattern(model, name, config) for name, config in wanted.items()}
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


def _pattern(model: nn.Module, part: GroupName, config: LoraConfigFields) -> str:
    """Names of a part's layers as an expression; scoped by path: parts have layers of one name."""
    spatial = _spatial_modules(model)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(_TREES[part]) and name not in spatial
    ]
    known = {name.rpartition(".")[2] for name in layers}
    unknown = [target for target in sorted(config.targets or ()) if target not in known]
    if unknown or not layers:
        what = f"no linear layer {unknown[0]!r}" if unknown else "no linear layer"
        raise UsageError(
            f"groups.{part}.lora.targets: the part {part!r} has {what}; "
            f"it has {', '.join(sorted(known)) or 'none'}"
        )
    if part == "connector":  # few layers, some of them beside spatial ones: each by its name
        chosen = [n for n in layers if n.rpartition(".")[2] in (config.targets or known)]
        return "|".join(map(re.escape, chosen))
    (tree,) = _TREES[part]
    targets = sorted(config.targets or known)
    return rf"{re.escape(tree)}.*\.({'|'.join(map(re.escape, targets))})"


def _spatial_modules(model: nn.Module) -> set[str]:
    names = {module: name for name, module in model.named_modules()}
    stages = model.model.multi_modal_projector.stages  # type: ignore[union-attr]
    return {
        names[inner]
        for stage in stages  # type: ignore[union-attr]
        for module in stage.spatial_modules()
        for inner in module.modules()
        if inner in names
    }


def check_adapter(
    model: VistokenForConditionalGeneration,
    wanted: Mapping[GroupName, LoraConfigFields],
    stage: str,
) -> None:
    """Refuse settings that the adapter which a model carries does not have.

    Raises:
        UsageError: Another rank or scale, or a part without adapters.
    """
    (carried,) = model.peft_config.values()
    layers = lora_layers(model)
    for part, config in wanted.items():
        own = [name for name in layers if name.startswith(_TREES[part])]
        if not own:
            raise UsageError(
                f"stage {stage!r} trains LoRA on the part {part!r}, but the adapter of an earlier "
                "stage has none there; give all stages with LoRA the same parts"
            )
        module = model.get_submodule(own[0].rpartition(".lora_")[0])
        (rank,) = module.r.values()
        (alpha,) = module.lora_alpha.values()
        for name, has, asked in (
            ("r", rank, config.r),
            ("alpha", alpha, config.alpha),
            ("dropout", carried.lora_dropout, config.dropout),
        ):
            if has != asked:
                raise UsageError(
                    f"stage {stage!r}: groups.{part}.lora.{name} is {asked:g}, but the model "
                    f"carries LoRA with {has:g}, which training continues; set {name} to {has:g}"
                )


def lora_layers(model: nn.Module) -> list[str]:
    """Names of the adapters' tensors."""
    return [name for name, _ in model.named_parameters() if is_lora(name)]


def is_lora(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name
