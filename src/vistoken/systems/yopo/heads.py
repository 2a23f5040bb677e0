"""Head masks on disk: our files, which say what they were measured on, and the released ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vistoken.core.errors import WeightsError
from vistoken.core.files import replacing, writing

_KEEP, _STATISTIC, _FINGERPRINT = "head_keep", "statistic", "fingerprint"
_FORMAT = "vistoken head mask 1"
_SAMPLED = 1024  # values of each tensor that the fingerprint reads


@dataclass(frozen=True)
class HeadMask:
    """Which attention heads compute for visual tokens.

    L layers, H attention heads.

    Args:
        keep (Tensor): (L, H) bool.
        statistic (Tensor | None): (L, H) float32, what was compared with the threshold.
        fingerprint: Of the language model it was measured on, see :func:`fingerprint_of`; empty
            for released masks, which do not say.
        details: How it was measured.
    """

    keep: Tensor
    statistic: Tensor | None = None
    fingerprint: str = ""
    details: Mapping[str, str] = field(default_factory=dict[str, str])

    def digits(self) -> tuple[str, ...]:
        """One string of 0 and 1 per layer, as configurations hold it."""
        return tuple("".join(str(int(v)) for v in row) for row in self.keep.tolist())


def fingerprint_of(language_model: nn.Module) -> str:
    """Short name of a language model's weights: sha256 over a part of every tensor.

    Tensors are read as bfloat16, so that loading a model in another floating type keeps the name
    unless the type is coarser than that.

    Args:
        language_model: The headless text model.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(language_model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        some = tensor.detach().flatten()[:_SAMPLED].to("cpu", torch.bfloat16).contiguous()
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def save_head_mask(mask: HeadMask, path: Path) -> None:
    """Write a head mask as safetensors.

    Raises:
        MachineError: The disk is full or the place cannot be written.
    """
    tensors = {_KEEP: mask.keep.to(torch.uint8)}
    if mask.statistic is not None:
        tensors[_STATISTIC] = mask.statistic.to(torch.float32)
    metadata = {**mask.details, "format": _FORMAT, _FINGERPRINT: mask.fingerprint}
    with writing(path), replacing(path) as scratch:
        save_file(tensors, scratch, metadata=metadata)


def read_head_mask(path: Path) -> HeadMask:
    """Read our own file, or a released ``.npy`` array of 0 and 1.

    Args:
        path: A ``.safetensors`` or ``.npy`` file.

    Raises:
        WeightsError: Not there, damaged, of another kind, or holding pickled objects, which are
            never loaded.
    """
    if not path.is_file():
        raise WeightsError(f"head mask {path} does not exist; name a .safetensors or .npy file")
    if path.suffix == ".npy":
        return HeadMask(_two_valued(_numpy(path), path))
    if path.suffix == ".safetensors":
        return _ours(path)
    raise WeightsError(f"head mask {path} must be a .safetensors or .npy file")


def check_size(mask: HeadMask, text_config: Any, where: str) -> None:
    """Refuse a mask of another number of layers or heads.

    Args:
        mask: The mask.
        text_config: Configuration of the language model it is to be used with.
        where: Names the mask in errors.

    Raises:
        WeightsError: The sizes differ.
    """
    wanted = (text_config.num_hidden_layers, text_config.num_attention_heads)
    if tuple(mask.keep.shape) != wanted:
        raise WeightsError(
            f"{where} has {mask.keep.shape[0]} layers of {mask.keep.shape[1]} heads, the language "
            f"model {wanted[0]} of {wanted[1]}; use a mask made for this model"
        )


def check_weights(mask: HeadMask, language_model: nn.Module, where: str) -> None:
    """Refuse a mask that was measured on other weights; released masks do not say.

    Args:
        mask: The mask.
        language_model: The headless text model it is to be used with.
        where: Names the mask in errors.

    Raises:
        WeightsError: The weights are others.
    """
    if mask.fingerprint and mask.fingerprint != fingerprint_of(language_model):
        raise WeightsError(
            f"{where} was measured on a language model with other weights; calibrate on this one "
            "(vistoken prune --method yopo --data FILE)"
        )


def _numpy(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(
            f"head mask {path} is no plain array ({str(error).strip().splitlines()[0]}); fetch it "
            "again"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise WeightsError(f"head mask {path} must hold one array of 0 and 1")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def _ours(path: Path) -> HeadMask:
    try:
        with safe_open(path, "pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"head mask {path} is damaged ({error}); make it again") from error
    if metadata.pop("format", None) != _FORMAT or _KEEP not in tensors:
        raise WeightsError(f"{path} is no head mask; make one with vistoken prune --method yopo")
    fingerprint = metadata.pop(_FINGERPRINT, "")
    keep = _two_valued(tensors[_KEEP].double(), path)
    return HeadMask(keep, tensors.get(_STATISTIC), fingerprint, metadata)


def _two_valued(values: Tensor, path: Path) -> Tensor:
    if values.dim() != 2 or not values.numel() or not bool(((values == 0) | (values == 1)).all()):
        raise WeightsError(
            f"head mask {path} must be an array (layers, heads) of 0 and 1, it is "
            f"{tuple(values.shape)}"
        )
    return values.bool()
