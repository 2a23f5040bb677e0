"""What one layer is told by the active mechanisms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Changes to one layer; every field defaults to "as the stock layer".

    Sizes: B batch, H query heads, q rows of this call, k keys including cached ones. Any of them
    may be 1 where the value is shared.

    Args:
        mask (Tensor | None): (B, H, q, k) bool, True where attention stays allowed; can only
            narrow what causality and padding allow.
        key_bias (Tensor | None): (B, H, q, k) float, added to the scores before the softmax.
    """

    mask: Tensor | None = None
    key_bias: Tensor | None = None

    @property
    def is_trivial(self) -> bool:
        """Whether the layer runs as the stock one."""
        return self.mask is None and self.key_bias is None


STOCK_LAYER = LayerPlan()
"""The trivial plan."""


def merge_plans(plans: Iterable[LayerPlan]) -> LayerPlan:
    """Combine the plans of several mechanisms for one layer.

    Args:
        plans: In the order of the stack.

    Returns:
        One plan: masks AND, biases add.
    """
    merged = STOCK_LAYER
    for plan in plans:
        if plan.is_trivial:
            continue
        merged = plan if merged.is_trivial else _merge_two(merged, plan)
    return merged


def _merge_two(first: LayerPlan, second: LayerPlan) -> LayerPlan:
    mask, key_bias = first.mask, first.key_bias
    if second.mask is not None:
        mask = second.mask if mask is None else mask & second.mask
    if second.key_bias is not None:
        key_bias = second.key_bias if key_bias is None else key_bias + second.key_bias
    return LayerPlan(mask, key_bias)
