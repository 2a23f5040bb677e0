"""Attention masks of one decoder call, per attention pattern and per plan.

B batch, H heads, q query rows, n rows of this call, k keys. Masks are boolean (True may attend) or
additive, whichever the attention backend takes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import Cache, PretrainedConfig

from vistoken.core.errors import UsageError
from vistoken.models._compat import LayerPattern, attention_backend, stock_mask
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.mask_math import allowed_keys, narrow, to_additive, widen
from vistoken.models.decoder.plan import STOCK_LAYER, LayerPlan
from vistoken.models.decoder.rows import RowSet
from vistoken.models.decoder.state import SequenceState

AttentionMask = Tensor | Mapping[str, Tensor | None] | None
"""What a caller may give: (B, k) padding, a ready 4-D mask, one of these per pattern, nothing."""


class CallMasks:
    """Builds and keeps the masks of one call.

    As long as no mechanism changes the rows and the cache is a stock one, masks are the stock
    model's own. Otherwise they are built from what rows and keys are: the caller's padding mask
    and positions describe rows that are gone, or that a layer never stored.

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
        self._own_cache = isinstance(cache, SparseCache)
        self._stock_masks: dict[tuple[LayerPattern, bool], Tensor | None] = {}
        self._rebuildable = False
        if self._backend.mask == "none" and is_padding_mask(attention_mask):
            raise UsageError(
                f"the attention implementation {self._backend.name!r} has no mask builder, so "
                "padding would be attended; register its name with AttentionMaskInterface too."
            )

    @property
    def additive(self) -> bool:
        """Whether masks are added to the scores."""
        return self._backend.mask == "additive"

    def require_recomposable(self) -> None:
        """Refuse attention functions that a layer put together from its modules cannot call.

        Raises:
            UsageError: If the function takes no ready mask, such as flash and flex attention.
        """
        if not self._backend.takes_mask:
            raise UsageError(
                f"the attention implementation {self._backend.name!r} cannot run a mechanism that "
                "changes rows, heads or channels inside a layer; load the model with "
                "attn_implementation='sdpa'."
            )

    def for_layer(
        self,
        pattern: LayerPattern,
        state: SequenceState,
        plan: LayerPlan,
        queries: RowSet | None = None,
    ) -> Tensor | None:
        """Give the mask of one layer.

        Args:
            pattern: Attention pattern of the layer.
            state: The layer's input.
            plan: What the mechanisms ask for.
            queries: The rows that are queries; None for all.

        Returns:
            The mask (B, 1 or H, q, k) in the backend's form; None means causal.

        Raises:
            UsageError: If the backend cannot honour the plan, or the plan does not fit.
        """
        stock = not self._own_cache and state.valid is self._original_valid
        if plan is STOCK_LAYER and queries is None and stock:
            return self._stock(pattern, state, materialise=False)
        if plan.shapes_attention:
            self._require_backend(plan)
        ready = isinstance(self._given, Tensor) and not is_padding_mask(self._given)
        if stock and (plan.mask_or is None or ready):
            materialise = plan.shapes_attention or queries is not None
            base = self._stock(pattern, state, materialise=materialise)
            if base is None and materialise:
                raise UsageError(
                    f"the attention implementation {self._backend.name!r} has no mask of its own "
                    "for a mechanism's layer; load the model with attn_implementation='sdpa'."
                )
            if base is not None and plan.mask_or is not None:
                base = widen(base, plan.mask_or, state)
            if base is not None and queries is not None:
                base = queries.gather(base, dim=2)
        else:
            base = self._own(pattern, state, plan, queries)
        if base is not None:
            base = narrow(base, plan, state, queries)
        return base

    def _require_backend(self, plan: LayerPlan) -> None:
        wants = "key bias" if plan.key_bias is not None else "mask"
        able = self._backend.takes_mask and (plan.key_bias is None or self._backend.takes_bias)
        if not able:
            raise UsageError(
                f"the attention implementation {self._backend.name!r} cannot honour a mechanism's "
                f"{wants}; load the model with attn_implementation='sdpa'."
            )

    def _stock(
        self, pattern: LayerPattern, state: SequenceState, *, materialise: bool
    ) -> Tensor | None:
        key = (pattern, materialise)
        if key not in self._stock_masks:
            self._stock_masks[key] = self._make_stock(pattern, state, materialise=materialise)
        return self._stock_masks[key]

    def _make_stock(
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
        if mask is not None and mask.dtype.is_floating_point is False:
            # an additive backend would add a given boolean mask to the scores as 0 and 1
            return self._in_form(mask, state) if self._backend.mask == "additive" else mask
        return mask

    def _own(
        self,
        pattern: LayerPattern,
        state: SequenceState,
        plan: LayerPlan,
        queries: RowSet | None,
    ) -> Tensor | None:
        """Mask of rows and keys that are no longer the caller's.

        Positions with gaps must not reach the stock mask builder: it would take each gap for the
        border of a packed sample. Causality is the order in which rows were seen, while a sliding
        window counts original positions.
        """
        self._require_rebuildable()
        keys = state.keys()
        window = self._config.sliding_window if pattern == "sliding_attention" else None
        # no mask means "causal" to sdpa, but "everything" to eager attention
        optional = self._backend.mask == "bool" and not plan.shapes_attention
        return state.memo.get(
            f"mask {pattern} {optional}",
            (keys.order, keys.valid, plan.mask_or, None if queries is None else queries.mask),
            lambda: self._in_form(
                allowed_keys(state, keys, window, plan.mask_or, queries, may_skip=optional), state
            ),
        )

    def _in_form(self, allowed: Tensor | None, state: SequenceState) -> Tensor | None:
        if allowed is None:
            return None
        allowed = allowed.to(state.hidden.device)
        return allowed if self._backend.mask == "bool" else to_additive(allowed, state.hidden.dtype)

    def _require_rebuildable(self) -> None:
        if self._rebuildable:
            return
        if not self._backend.takes_mask:
            raise UsageError(
                f"the attention implementation {self._backend.name!r} cannot run a mechanism that "
                "drops tokens, keeps its own cache or widens attention; load the model with "
                "attn_implementation='sdpa'."
            )
        if self._cache is not None and not self._own_cache:
            raise UsageError(
                "a mechanism dropped tokens or widened attention while a stock key/value cache is "
                "in use, which does not know what it holds; pass a SparseCache or use_cache=False."
            )
        given, cached = self._given, self._cache is not None
        packed = given is None and not cached and bool((self._position_ids.diff(dim=1) <= 0).any())
        if packed or not (given is None or is_padding_mask(given)):
            raise UsageError(
                "a mechanism dropped tokens of packed samples, widened their attention or keeps "
                "its own cache under a ready 4-D attention_mask; give it unpacked rows with a 2-D "
                "attention_mask."
            )
        self._rebuildable = True


def is_padding_mask(attention_mask: AttentionMask) -> bool:
    """Whether this is a (B, k) padding mask, not a ready one."""
    return isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
