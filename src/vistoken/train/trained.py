"""The weights that a stage trains, in one file: connector, layout, adapters and the like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.files import write_atomically
from vistoken.models.checkpoint import own_state, plain_name, read_safetensors
from vistoken.train.lora import is_lora

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration

TRAINED = "trained.safetensors"


def trained_state(model: VistokenForConditionalGeneration) -> dict[str, Tensor]:
    """Connector, layout, adapters and whatever else is trained, in the types they have."""
    state = dict(own_state(model))
    state |= {
        plain_name(name): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or is_lora(name)
    }
    return state


def write_trained(model: VistokenForConditionalGeneration, path: Path) -> None:
    """Save :func:`trained_state` in one file, atomically."""
    state = {name: tensor.cpu().contiguous() for name, tensor in trained_state(model).items()}
    write_atomically(path, save(state, metadata={"format": "pt"}))


def read_trained(
    model: VistokenForConditionalGeneration, path: Path, others_allowed: bool = False
) -> None:
    """Load what :func:`write_trained` saved; every tensor of ours must be in the file.

    Args:
        model: The model, adapters already injected.
        path: The file.
        others_allowed: Accept a file that lacks weights trained by no earlier stage (adapters).

    Raises:
        WeightsError: A tensor is missing, unexpected or of another shape.
    """
    loaded = read_safetensors(path)
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    own = {plain_name(name): tensor for name, tensor in named.items()}
    needed = own_state(model) if others_allowed else trained_state(model)
    problems = [f"{name} is missing" for name in needed if name not in loaded]
    problems += [f"{name} is unexpected" for name in loaded if name not in own]
    problems += [
        f"{name} is {tuple(tensor.shape)}, the model needs {tuple(own[name].shape)}"
        for name, tensor in loaded.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(f"{path} does not fit this run: {'; '.join(problems[:5])}{more}")
    with torch.no_grad():
        for name, tensor in loaded.items():
            own[name].copy_(tensor)
