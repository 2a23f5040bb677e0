"""Which layers of a named part get low-rank adapters, and which cannot have any."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from vistoken.core.errors import UsageError
from vistoken.train.group_settings import GroupName, LoraConfigFields

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration

logger = logging.getLogger(__name__)

_PROJECTOR = "model.multi_modal_projector."
_TREES: dict[GroupName, tuple[str, ...]] = {
    "vision": ("model.vision_tower.",),
    "connector": (_PROJECTOR, "model.layout."),
    "spatial": (_PROJECTOR,),
    "language": ("model.language_model.",),
}
"""Where the layers of each part stand; connector and spatial part share a tree."""


def adaptable_layers(
    model: VistokenForConditionalGeneration, part: GroupName
) -> dict[str, nn.Module]:
    """Layers of a part that can have an adapter, by name; one that has one is the wrapper.

    Linear layers, and the spatial part's convolutions that are not depthwise.
    """
    spatial = _spatial_names(model)
    return {
        name: module
        for name, module in _layers(model)
        if name.startswith(_TREES[part])
        and (name in spatial) == (part == "spatial")
        and _is_adaptable(_base(module), part)
    }


def chosen_layers(
    model: VistokenForConditionalGeneration, part: GroupName, config: LoraConfigFields
) -> list[str]:
    """Names of the layers of a part that its settings give an adapter.

    Raises:
        UsageError: A target that the part does not have, a part without any layer, or spatial
            weights that cannot have an adapter where no targets leave them out.
    """
    layers = list(adaptable_layers(model, part))
    others = _without_adapters(model) if part == "spatial" else {}
    for target in sorted(config.targets or ()):
        _check_target(part, target, layers, others)
    if not layers:
        held = f"only {_listed(others)}, which cannot have LoRA; use train: full"
        raise UsageError(
            f"groups.{part}.lora.targets: the part {part!r} has "
            + (held if others else "no linear layer; it has none")
        )
    if config.targets is None and others:
        raise UsageError(
            f"groups.{part}.train: {_listed(others)} cannot have LoRA; use train: full, or name "
            "in lora.targets what gets adapters "
            f"({', '.join(_roots(layers))}) and leave the rest frozen"
        )
    if others:
        logger.warning("LoRA on the part %r: %s stay frozen", part, _listed(others))
    if config.targets is None:
        return layers
    return [name for name in layers if any(_is_meant(part, name, t) for t in config.targets)]


def layer_pattern(
    model: VistokenForConditionalGeneration, part: GroupName, config: LoraConfigFields
) -> str:
    """The chosen layers as an expression; scoped by path: parts have layers of one name."""
    chosen = chosen_layers(model, part, config)
    if part in ("connector", "spatial"):  # few, in one tree with each other's: each by its name
        return "|".join(map(re.escape, chosen))
    (tree,) = _TREES[part]
    leaves = sorted({_leaf(name) for name in chosen})
    return rf"{re.escape(tree)}.*\.({'|'.join(map(re.escape, leaves))})"


def short_name(name: str) -> str:
    """A connector layer's name from its stage on."""
    return name.removeprefix(_PROJECTOR)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by name; of an adapted layer the wrapper alone, not what is inside it."""
    wrapper = ""
    for name, module in model.named_modules():
        if wrapper and name.startswith(wrapper):
            continue
        wrapper = f"{name}." if isinstance(module, _wrapper_class()) else ""
        yield name, module


def _wrapper_class() -> type:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return BaseTunerLayer


def _base(module: nn.Module) -> nn.Module:
    if isinstance(module, _wrapper_class()):
        base: nn.Module = module.get_base_layer()  # type: ignore[operator]
        return base
    return module


def _is_adaptable(module: nn.Module, part: GroupName) -> bool:
    # a depthwise kernel is one small filter per channel: no matrix to have a low rank
    convolution = isinstance(module, nn.Conv2d) and module.groups == 1
    return isinstance(module, nn.Linear) or (part == "spatial" and convolution)


def _spatial_names(model: VistokenForConditionalGeneration) -> set[str]:
    inside = {
        inner
        for stage in model.model.multi_modal_projector.stages
        for module in stage.spatial_modules()
        for inner in module.modules()
    }
    return {name for name, module in model.named_modules() if module in inside}


def _without_adapters(model: VistokenForConditionalGeneration) -> dict[str, str]:
    """Spatial weights that cannot have an adapter, with what they are; not gains and biases."""
    spatial = _spatial_names(model)
    found: dict[str, str] = {}
    for name, module in _layers(model):
        if name not in spatial or _is_adaptable(_base(module), "spatial"):
            continue
        for field, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and isinstance(module, nn.Conv2d):
                found[name] = "depthwise kernel"
            elif parameter.dim() > 1:
                found[f"{name}.{field}"] = "bare tensor"
    return found


def _check_target(part: GroupName, target: str, layers: list[str], others: dict[str, str]) -> None:
    if any(_is_meant(part, name, target) for name in layers):
        return
    refused = {name: kind for name, kind in others.items() if _is_meant(part, name, target)}
    if refused:
        raise UsageError(
            f"groups.{part}.lora.targets: {target!r} is {_listed(refused)}, which cannot "
            "have LoRA; leave it out, or use train: full"
        )
    known = _roots(layers) if part == "spatial" else sorted({_leaf(name) for name in layers})
    raise UsageError(
        f"groups.{part}.lora.targets: the part {part!r} has no linear layer {target!r}; "
        f"it has {', '.join(known) or 'none'}"
    )


def _is_meant(part: GroupName, name: str, target: str) -> bool:
    """Whether a target names a layer; of the spatial part also a module that holds it."""
    if part == "spatial":
        return f".{target}." in f".{short_name(name)}."
    return _leaf(name) == target


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _roots(layers: list[str]) -> list[str]:
    """The modules of a connector stage that hold layers."""
    return sorted({short_name(name).split(".")[1] for name in layers})


def _listed(found: dict[str, str]) -> str:
    """At most three names, each with what it is."""
    said = [f"{short_name(name)} ({kind})" for name, kind in list(found.items())[:3]]
    return ", ".join(said) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
