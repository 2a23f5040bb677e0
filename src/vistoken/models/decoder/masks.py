"""Attention masks of one decoder call, per attention pattern and per plan.

B batch, H heads, q rows of this call, k keys. Masks are boolean (True may attend) or additive,
whichever the attention backend takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from vistoken.core.errors import UsageError
from vistoken.models._compat import LayerPattern, attention_backend, stock_mask
from vistoken.models.decoder.plan import LayerPlan
from vistoken.models.decoder.state import SequenceState

AttentionMask = Tensor | Mapping[str, Tensor | None] | None
"""What a caller may give: (B, k) padding, a ready 4-D mask, one of these per pattern, nothing."""


class CallMasks:
    """Builds and keeps the masks of one call.

    As long as no mechanism changes the rows, masks are the stock model's own. Afterwards they are
    built from the state: the caller's padding mask and positions describe rows that are gone.

    Args:
        config: The text model's configuration.
        attention_mask: The caller's mask.
        position_ids (Tensor): (B, n), the caller's positions.
        valid (Tensor): (B, n) bool, the state's rows at the start.
        cache: Keys and values of earlier calls.

    Raises:
        UsageError: If a padding mask is given that the attention backend would never see.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        attention_mask: AttentionMask,
        position_ids: Tensor,
        valid: Tensor,
        cache: Cache | None,
    ) -> None:
        self._config = config
        self._given = attention_mask
        self._position_ids = position_ids
        self._original_valid = valid
        self._cache = cache
        self._backend = attention_backend(config)
        self._built: dict[tuple[LayerPattern, bool], Tensor | None] = {}
        self._built_for = valid
        if self._backend.mask == "none" and is_padding_mask(attention_mask):
            raise UsageError(
                f"the attention implementation {self._backend.name!r} has no mask builder, so "
                "padding would be attended; register its name with AttentionMaskInterface too."
            )

    def for_layer(
        self, pattern: LayerPattern, state: SequenceState, plan: LayerPlan
    ) -> Tensor | None:
        """Give the mask of one layer.

        Args:
            pattern: Attention pattern of the layer.
            state: The layer's input.
            plan: What the mechanisms ask for.

        Returns:
            The mask in the backend's form; None means causal.

        Raises:
            UsageError: If the backend cannot honour the plan, or the plan does not fit.
        """
        if plan.is_trivial:
            return self._base(pattern, state, materialise=False)
        self._require_backend(plan)
        base = self._base(pattern, state, materialise=True)
        if base is None:
            raise RuntimeError(f"no mask was built for {self._backend.name!r}")
        return _apply(base, plan, state)

    def _require_backend(self, plan: LayerPlan) -> None:
        wants = "key bias" if plan.key_bias is not None else "mask"
        able = self._backend.takes_mask and (plan.key_bias is None or self._backend.takes_bias)
        if not able:
            raise UsageError(
                f"the attention implementation {self._backend.name!r} cannot honour a mechanism's "
                f"{wants}; load the model with attn_implementation='sdpa'."
            )

    def _base(
        self, pattern: LayerPattern, state: SequenceState, *, materialise: bool
    ) -> Tensor | None:
        if state.valid is not self._built_for:
            self._built.clear()
            self._built_for = state.valid
        key = (pattern, materialise)
        if key not in self._built:
            unchanged = state.valid is self._original_valid
            self._built[key] = (
                self._stock(pattern, state, materialise=materialise)
                if unchanged
                else self._from_rows(pattern, state)
            )
        return self._built[key]

    def _stock(
        self, pattern: LayerPattern, state: SequenceState, *, materialise: bool
    ) -> Tensor | None:
        given = self._given
        position_ids: Tensor | None = self._position_ids
        if isinstance(given, Mapping):  # `generate` prepares one mask per pattern
            given = given[pattern]
            if given is not None or not materialise:
                return given
            position_ids = None  # a prepared None says "causal": nothing is packed
        mask = stock_mask(
            pattern,
            layer=state.layer,
            config=self._config,
            hidden=state.hidden,
            attention_mask=given,
            position_ids=position_ids,
            cache=self._cache,
            materialise=materialise,
        )
        if mask is not None and mask.dtype == torch.bool and self._backend.mask == "additive":
            return _to_additive(mask, state.hidden.dtype)  # else added to the scores as 0 and 1
        return mask

    def _from_rows(self, pattern: LayerPattern, state: SequenceState) -> Tensor:
        """Mask of rows that a mechanism has changed.

        Positions with gaps must not reach the stock mask builder: it would take each gap for the
        border of a packed sample. Rows keep their order, so causality is the order of rows, while
        a sliding window counts original positions.
        """
        self._require_rebuildable()
        positions, rows = state.position_ids, state.hidden.shape[1]
        order = torch.arange(rows, device=positions.device)
        allowed = (order[:, None] >= order[None, :]) & state.valid[:, None, :]  # (B, q, k)
        if pattern == "sliding_attention":
            allowed &= positions[:, :, None] - positions[:, None, :] < self._config.sliding_window
        if self._backend.mask == "bool":
            return allowed[:, None]
        return _to_additive(allowed[:, None], state.hidden.dtype)

    def _require_rebuildable(self) -> None:
        if not self._backend.takes_mask:
            raise UsageError(
                f"the attention implementation {self._backend.name!r} cannot run a mechanism that "
                "drops tokens; load the model with attn_implementation='sdpa'."
            )
        if self._cache is not None:
            raise UsageError(
                "a mechanism dropped tokens while a key/value cache is in use, and this cache "
                "cannot hold layers of different lengths; pass use_cache=False."
            )
        packed = self._given is None and bool((self._position_ids.diff(dim=1) <= 0).any())
        if packed or not (self._given is None or is_padding_mask(self._given)):
            raise UsageError(
                "a mechanism dropped tokens of packed samples or under a ready 4-D "
                "attention_mask; give it unpacked rows with a 2-D attention_mask."
            )


def is_padding_mask(attention_mask: AttentionMask) -> bool:
    """Whether this is a (B, k) padding mask, not a ready one."""
    return isinstance(attention_mask, Tensor) and attention_mask.dim() == 2


def _to_additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


def _apply(base: Tensor, plan: LayerPlan, state: SequenceState) -> Tensor:
    """Narrow a ready mask (B, 1 or H, q, k) by a plan's mask and add its bias.

    A bias always goes in through an additive mask: sdpa and eager attention both add it to the
    scores, whereas eager attention drops a separate bias argument without a word.
    """
    dtype = state.hidden.dtype
    lowest = torch.finfo(dtype).min
    if plan.mask is not None:
        _require_fit("mask", plan.mask, base, state.layer)
        allowed = plan.mask.to(base.device)
        base = base & allowed if base.dtype == torch.bool else torch.where(allowed, base, lowest)
    if plan.key_bias is not None:
        _require_fit("key_bias", plan.key_bias, base, state.layer)
        bias = plan.key_bias.to(base.device, dtype)
        if base.dtype == torch.bool:
            return torch.where(base, bias, lowest)
        base = (base + bias).clamp(min=lowest)  # lowest + bias must not become -inf
    return base


def _require_fit(field: str, tensor: Tensor, base: Tensor, layer: int) -> None:
    fits = tensor.dim() == 4 and all(
        size in (1, wanted) or (axis == 1 and wanted == 1)
        for axis, (size, wanted) in enumerate(zip(tensor.shape, base.shape, strict=True))
    )
    if not fits:
        raise UsageError(
            f"a mechanism's {field} for layer {layer} has shape {tuple(tensor.shape)} but "
            f"attention there is (batch, heads, queries, keys) = {tuple(base.shape)}."
        )
