"""Weight-only quantisation of the language model; towers and connector stay as they are."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from torch import nn

from vistoken.core.errors import MachineError, UsageError, did_you_mean
from vistoken.models.modeling import VistokenForConditionalGeneration

METHODS = ("int8", "nf4")


def quantize_language_model(
    model: VistokenForConditionalGeneration, method: Literal["int8", "nf4"]
) -> None:
    """Quantise the language model's linear layers in place.

    Args:
        model: The model, LoRA folded in.
        method: ``int8`` through torchao, or ``nf4`` through bitsandbytes.

    Raises:
        UsageError: Unknown method.
        MachineError: The method's package is not installed.
    """
    if method not in METHODS:
        raise UsageError(f"unknown quantization {method!r}: " + did_you_mean(method, METHODS))
    (_to_int8 if method == "int8" else _to_nf4)(model.model.language_model)


def _to_int8(module: nn.Module) -> None:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise MachineError("int8 weights need torchao: pip install 'vistoken[quant]'") from error
    quantize_(module, Int8WeightOnlyConfig())


def _to_nf4(module: nn.Module) -> None:
    try:
        bnb: Any = importlib.import_module("bitsandbytes.nn")
    except ImportError as error:
        raise MachineError(
            "nf4 weights need bitsandbytes: pip install 'vistoken[quant]'"
        ) from error
    for name, linear in list(module.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        packed = bnb.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=linear.weight.dtype,
            quant_type="nf4",
        )
        packed.weight = bnb.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        packed.bias = linear.bias
        module.set_submodule(name, packed.to(linear.weight.device))
