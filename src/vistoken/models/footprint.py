"""What a pass of a model holds in memory, on the meta device: bytes without the memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface

from vistoken.models.modeling import VistokenForConditionalGeneration

_PROBE = "vistoken_memory"


class Held(TorchDispatchMode):
    """Bytes of all storages that operators made inside and that are still alive.

    Args:
        model: Its weights are there already: what operators make of them by another shape is not
            counted.

    Attributes:
        now: Bytes at this moment.
        peak: The most there were.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}
        weights = () if model is None else (*model.parameters(), *model.buffers())
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and see what it gives."""
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.see, made)
        return made

    def see(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage until it goes away."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive and key not in self._weights:
            self._alive[key] = weakref.ref(storage, lambda _: self._gone(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _gone(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size


class _FusedAttention(torch.autograd.Function):
    """Attention that saves what fused kernels do: its inputs, its output and one sum per row."""

    @staticmethod
    def forward(
        context: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        # kernels take a mask in the inputs' type, so every layer makes its own
        own = None if mask is None else mask.to(query.dtype, copy=True)
        context.save_for_backward(query, key, value, output, sums, own)
        return output


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    output: Tensor = _FusedAttention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def fused_attention(model: VistokenForConditionalGeneration) -> Iterator[None]:
    """Language model and towers with fused attention's footprint, whatever would be chosen."""
    AttentionInterface.register(_PROBE, _attend)
    configs = [module.config for module in (model.model.language_model, *model.model.towers())]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = _PROBE
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation
