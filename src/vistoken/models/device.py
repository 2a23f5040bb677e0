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
        UsageError: Not a device name, or a number that is none.
        MachineError: This machine has no such device, or fewer of them.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(
            f"unknown device {name!r}: " + did_you_mean(name, ["auto", "cpu", "cuda", "mps"])
        )
    if colon and not (number.isascii() and number.isdigit()):
        raise UsageError(f"device {name!r} has no number after the colon; write {kind} or {kind}:0")
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise MachineError(f"PyTorch finds no {kind} device here; use --device cpu or auto")
    if not colon:
        return torch.device(kind)
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(number) >= count:
        raise MachineError(
            f"there is no device {name} here: {kind} devices are numbered from 0, and PyTorch "
            f"finds {count}; use --device {kind}:0 or auto"
        )
    return torch.device(kind, int(number))


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
