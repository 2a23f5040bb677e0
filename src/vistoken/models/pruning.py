"""Running a pruner over calibration samples, and saving what it makes of a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vistoken.core.errors import DataError
from vistoken.core.pruning import Pruned, Pruner
from vistoken.models.checkpoint import atomic_directory, save_full
from vistoken.models.configuration import VistokenConfig
from vistoken.models.decoder import MechanismContext, MechanismStack, build_stack
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import PartSpec


def run_pruner(
    pruner: Pruner,
    model: VistokenForConditionalGeneration,
    samples: Iterable[Mapping[str, Any]] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Pruned:
    """Show a pruner the samples and let it decide.

    Args:
        pruner: The pruner.
        model: The model, in evaluation mode.
        samples: Model inputs, one prompt each.
        progress: Told how many samples are done.

    Returns:
        What the pruner decided; the model has the mechanisms that it asked for.

    Raises:
        DataError: Samples were given and none of them said anything.
        UsageError: A mechanism does not fit the model.
    """
    useful = seen = 0
    with torch.set_grad_enabled("gradients" in pruner.needs):
        for seen, inputs in enumerate(samples, start=1):
            useful += pruner.observe(model, inputs)
            progress(seen)
    if seen and not useful:
        raise DataError(
            f"none of the {seen} calibration samples can be used: they need a picture and a prompt"
        )
    pruned = pruner.finish(model)
    _install(model, pruned.mechanisms)
    return pruned


def _install(model: VistokenForConditionalGeneration, added: Sequence[Mapping[str, Any]]) -> None:
    """Put mechanisms into a model; those that it has already keep their weights."""
    backbone = model.model
    before = {mechanism.name: mechanism for mechanism in backbone.stack}
    model.config.decoder_config = with_mechanisms(model.config, added)
    context = MechanismContext(model.config.text_config, backbone.plan.projected_width)
    stack = build_stack(model.config.decoder_config["mechanisms"], context)
    new = {PartSpec.read(value, "mechanism").part for value in added}
    backbone.stack = MechanismStack(
        mechanism if mechanism.name in new else before[mechanism.name] for mechanism in stack
    )


def with_mechanisms(config: VistokenConfig, added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A configuration's decoder section with further mechanisms, or others of the same name.

    Args:
        config: The model's configuration; left as it is.
        added: Part specs.
    """
    specs = [PartSpec.read(value, "mechanism") for value in added]
    names = {spec.part for spec in specs}
    kept = [
        value
        for value in config.decoder_config["mechanisms"]
        if PartSpec.read(value, "mechanism").part not in names
    ]
    plain = [{"part": spec.part, "options": dict(spec.options)} for spec in specs]
    return {**config.decoder_config, "mechanisms": [*kept, *plain]}


def save_pruned(
    model: VistokenForConditionalGeneration,
    processor: Any,
    pruned: Pruned,
    out: Path,
    copy_of: Path | None = None,
) -> None:
    """Save a pruned model as a checkpoint.

    Args:
        model: The model after :func:`run_pruner`.
        processor: Its processor.
        pruned: What the pruner decided.
        out: Directory to make.
        copy_of: Checkpoint the model was loaded from, if no weight has changed: its files are
            copied (a light one stays light, an adapter stays apart), only the configuration is
            new.

    Raises:
        UsageError: ``out`` is not empty.
        MachineError: The disk is full, or the place cannot be written to.
    """
    if copy_of is None:
        save_full(model, processor, out)
        for name, write in pruned.files.items():
            write(out / name)
        return
    source = copy_of

    def write_copy(directory: Path) -> None:
        shutil.copytree(source, directory, dirs_exist_ok=True)
        config = VistokenConfig.from_pretrained(source)
        config.decoder_config = with_mechanisms(config, pruned.mechanisms)
        config.save_pretrained(directory)
        for name, write in pruned.files.items():
            write(directory / name)

    atomic_directory(out, write_copy)
