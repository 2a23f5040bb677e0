"""Checkpoints: *full* (everything inside) and *light* (what is ours, plus references).

A light checkpoint directory holds ``config.json``, the processor's files, ``model.safetensors``
with connector, layout and mechanisms, ``references.json`` (where each tower and the language
model come from, with a digest) and, with LoRA, ``adapter/`` in PEFT's format. Writing is atomic:
a directory is complete or absent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vistoken.core.errors import UsageError, WeightsError
from vistoken.core.files import writing
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.references import REFERENCES, Reference, write_references

ADAPTER = "adapter"
WEIGHTS = "model.safetensors"
_REFERENCED = ("model.vision_tower.", "model.language_model.", "lm_head.")


def is_light(directory: Path) -> bool:
    """Whether a directory is a light checkpoint."""
    return (directory / REFERENCES).is_file()


def own_state(model: VistokenForConditionalGeneration) -> dict[str, Tensor]:
    """Weights that are ours: everything but towers, language model and LoRA."""
    return {
        plain_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(_REFERENCED) and "lora_" not in name
    }


def plain_name(name: str) -> str:
    """A tensor's name without the wrapper that an adapter puts around its layer."""
    return name.replace(".base_layer.", ".")


def load_own_state(model: VistokenForConditionalGeneration, path: Path) -> None:
    """Load what :func:`own_state` saved, strictly.

    Raises:
        WeightsError: A tensor is missing, unexpected or of another shape; the message names it.
    """
    own = own_state(model)
    loaded = read_safetensors(path)
    problems = [f"{name} is missing" for name in own if name not in loaded]
    problems += [f"{name} is unexpected" for name in loaded if name not in own]
    problems += [
        f"{name} is {tuple(loaded[name].shape)}, the model needs {tuple(own[name].shape)}"
        for name in own
        if name in loaded and loaded[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(f"{path} does not fit the model: {'; '.join(problems[:5])}{more}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(loaded[name])


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; WeightsError names a missing or damaged one."""
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; the checkpoint is incomplete")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own types and plain OS errors
        raise WeightsError(f"{path} is damaged ({error}); fetch or save it again") from error


def digest_of(state: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes of a state dict, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def atomic_directory(out: Path, write: Callable[[Path], None]) -> None:
    """Write a directory under a temporary name, then rename it; refuses a non-empty target.

    Raises:
        UsageError: The target is not empty.
        MachineError: The disk is full, or the place cannot be written to.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists and is not empty; choose another output directory")
    with writing(out):
        _atomic_directory(out, write)


def _atomic_directory(out: Path, write: Callable[[Path], None]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def save_full(model: VistokenForConditionalGeneration, processor: Any, out: Path) -> None:
    """Save everything in one plain Hugging Face directory.

    Raises:
        UsageError: ``out`` is not empty, or LoRA weights are not merged yet.
    """
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise UsageError("merge the LoRA adapter before saving a full checkpoint")

    def write(directory: Path) -> None:
        model.save_pretrained(directory)
        processor.save_pretrained(directory)

    atomic_directory(out, write)


def save_light(
    model: VistokenForConditionalGeneration,
    processor: Any,
    out: Path,
    references: list[Reference],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Save what is ours, LoRA beside it, and references to the rest.

    Args:
        model: The model; LoRA, if any, injected in place.
        processor: Its processor.
        out: Directory to make.
        references: One per tower and for the language model.
        dtype: Floating type of the saved weights.
    """

    def write(directory: Path) -> None:
        model.config.save_pretrained(directory)
        processor.save_pretrained(directory)
        state = {n: _cast(t, dtype).contiguous() for n, t in own_state(model).items()}
        save_file(state, directory / WEIGHTS, metadata={"format": "pt"})
        write_references(directory, references)
        if getattr(model, "peft_config", None):
            save_adapter(model, directory / ADAPTER, dtype)

    atomic_directory(out, write)


def save_adapter(
    model: VistokenForConditionalGeneration, out: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Save injected LoRA weights in PEFT's format."""
    from peft import get_peft_model_state_dict

    out.mkdir(parents=True, exist_ok=True)
    (name, config), *others = model.peft_config.items()
    if others:
        raise UsageError("a checkpoint holds one LoRA adapter; delete the others first")
    state = get_peft_model_state_dict(model, adapter_name=name)
    state = {f"base_model.model.{n}": _cast(t, dtype).contiguous() for n, t in state.items()}
    save_file(state, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)


def load_adapter(model: VistokenForConditionalGeneration, directory: Path) -> None:
    """Inject a saved LoRA adapter; every one of its tensors must land.

    Raises:
        WeightsError: The adapter is for another model, or incomplete.
    """
    from peft import LoraConfig, set_peft_model_state_dict

    config = LoraConfig.from_pretrained(str(directory))
    config.inference_mode = False
    state = {
        name.removeprefix("base_model.model."): tensor
        for name, tensor in read_safetensors(directory / "adapter_model.safetensors").items()
    }
    model.add_adapter(config)
    own = {
        name.replace(".default.", "."): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted({name for name, _ in own.items() ^ given.items()})
    if wrong:
        raise WeightsError(
            f"adapter {directory} does not fit this model: {len(wrong)} tensors differ, "
            f"the first is {wrong[0]}; load it with the base it was trained on"
        )
    set_peft_model_state_dict(model, state)


def merge_adapter(model: VistokenForConditionalGeneration) -> None:
    """Fold injected LoRA weights into their layers and remove the adapter, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, module in wrapped:
        module.merge(safe_merge=True)
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    if wrapped:
        del model.peft_config
        model._hf_peft_config_loaded = False


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(dtype) if tensor.is_floating_point() else tensor.detach().cpu()
