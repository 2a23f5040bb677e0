"""Runs one layer: the stock layer itself where it can, its re-composition where it cannot."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Cache

from vistoken.core.errors import UsageError
from vistoken.models._compat import LayerPattern
from vistoken.models.decoder.asym import LayerCall, run_recomposed
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.families import LayerModules
from vistoken.models.decoder.masks import CallMasks
from vistoken.models.decoder.plan import STOCK_LAYER, LayerPlan, Rotation
from vistoken.models.decoder.rows import RowSet
from vistoken.models.decoder.sparse_layer import Pending
from vistoken.models.decoder.state import SequenceState


class LayerRunner:
    """Runs the layers of one call.

    Args:
        family: Model type of the language model.
        masks: The call's masks.
        cache: The call's cache.
        use_cache: As in the stock model.
        options: Further arguments for every layer and its attention function.
    """

    def __init__(
        self,
        family: str,
        masks: CallMasks,
        cache: Cache | None,
        use_cache: bool | None,
        options: dict[str, Any],
    ) -> None:
        self._family, self._masks = family, masks
        self._cache, self._use_cache, self._options = cache, use_cache, options
        self._own_cache = cache if isinstance(cache, SparseCache) else None

    def run(
        self,
        layer: nn.Module,
        pattern: LayerPattern,
        state: SequenceState,
        plan: LayerPlan,
        rotation: Rotation,
    ) -> Tensor:
        """Run one layer.

        Args:
            layer: The stock layer.
            pattern: Its attention pattern.
            state: Its input.
            plan: What to do differently.
            rotation: The model's own rotary tables of the rows.

        Returns:
            (B, n, D), the hidden states behind it.
        """
        if self._own_cache is not None:
            _announce(self._own_cache, state, plan)
        elif plan.cache_write is not None and self._cache is not None:
            raise UsageError(
                "a decoder mechanism writes only some keys, which this cache cannot do; leave "
                "past_key_values to the model, or pass a SparseCache."
            )
        if plan is STOCK_LAYER or not self._needs_recomposition(plan):
            if state.scores:
                state.scores = {}
            hidden: Tensor = layer(
                state.hidden,
                attention_mask=self._masks.for_layer(pattern, state, plan),
                position_embeddings=rotation,
                position_ids=state.position_ids,
                past_key_values=self._cache,
                use_cache=self._use_cache,
                **self._options,
            )
            return hidden
        self._masks.require_recomposable()
        queries = _queries(state, plan)
        call = LayerCall(
            parts=LayerModules.of(layer, self._family),
            number=state.layer,
            plan=plan,
            mask=self._masks.for_layer(pattern, state, plan, queries),
            queries=queries,
            rotation=rotation,
            cache=self._cache,
            options={**self._options, "position_ids": state.position_ids},
        )
        return run_recomposed(call, state)

    def _needs_recomposition(self, plan: LayerPlan) -> bool:
        # where a plan hides all keys of a row, eager attention would average over all of them
        return plan.recomposes or (plan.mask is not None and self._masks.additive)


def _announce(cache: SparseCache, state: SequenceState, plan: LayerPlan) -> None:
    """Tell the layer's cache which rows are coming, and which of them to store."""
    layer, order, write = cache.sparse_layers[state.layer], state.row_order, plan.cache_write
    index = layer.index
    layer.expect(
        state.memo.get("pending", (index, order, write), lambda: Pending.of(index, order, write))
    )


def _queries(state: SequenceState, plan: LayerPlan) -> RowSet | None:
    mask = plan.query_rows
    if mask is None:
        return None
    if (
        mask.dim() != 2
        or mask.shape[0] not in (1, len(state.valid))
        or (mask.shape[1] != state.valid.shape[1])
    ):
        raise UsageError(
            f"a mechanism's query_rows for layer {state.layer} has shape {tuple(mask.shape)}, the "
            f"call has {tuple(state.valid.shape)} rows."
        )
    rows = state.memo.get("rows", (mask,), lambda: RowSet(mask.expand_as(state.valid)))
    return None if rows.is_everything else rows
