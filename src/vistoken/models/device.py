"""Choosing a device and a floating type that it does well."""

from __future__ import annotations

import torch

from vistoken.core.errors import MachineError, UsageError, did_you_mean

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Resolve a device name.

    Args:
        name: ``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        UsageError: Not a device name.
        MachineError: This machine has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(
            f"unknown device {name!r}: " + did_you_mean(name, ["auto", "cpu", "cuda", "mps"])
        )
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise MachineError(f"PyTorch finds no {kind} device here; use --device cpu or auto")
    return torch.device(name)


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Resolve a floating type; ``auto`` takes bfloat16 or float16 on GPUs and float32 on a CPU.

    Raises:
        UsageError: Not a floating type by name.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.float16 if device.type == "mps" else torch.float32
    if name not in _DTYPES:
        raise UsageError(f"unknown dtype {name!r}: " + did_you_mean(name, ["auto", *_DTYPES]))
    return _DTYPES[name]
