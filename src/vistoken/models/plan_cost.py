"""What the decoder costs under its mechanisms, counted from the plans that they make.

One multiply-add counts as two FLOPs. The layers are not run: each is asked for its plan, and sizes
are read from its modules, which may lie on the meta device. What mechanisms inject is run there.
Norms, rotary tables, softmax and the head count as nothing, as in :mod:`vistoken.models.cost`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.core.tables import TOKEN
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.families import LayerModules, check_family
from vistoken.models.decoder.layer_count import LayerCount, count_layer
from vistoken.models.decoder.restart import restarted
from vistoken.models.decoder.scoring_count import ScoringCounter
from vistoken.models.decoder.sparse_layer import Pending
from vistoken.models.decoder.stack import MechanismStack
from vistoken.models.decoder.state import SequenceState


@dataclass(frozen=True)
class PhaseCost:
    """One call of the decoder: the prompt, or a step behind it.

    Args:
        layers: Counts of each layer.
        cache_values: Numbers that the key/value cache holds afterwards, all layers together.
        scoring_flops: What mechanisms had worked out before, to choose the prompt's rows.
    """

    layers: tuple[LayerCount, ...]
    cache_values: int
    scoring_flops: int = 0

    @property
    def flops(self) -> int:
        """What is multiplied: attention as full rectangles, masked or not."""
        return self.scoring_flops + sum(layer.flops for layer in self.layers)

    def cache_bytes(self, dtype: torch.dtype = torch.bfloat16) -> int:
        """Bytes of the cache."""
        return self.cache_values * dtype.itemsize

    def visual_flops(self, keys_per_row: int | None = None) -> float:
        """FLOPs for visual rows alone, see :meth:`LayerCount.visual_flops`."""
        return sum(layer.visual_flops(keys_per_row) for layer in self.layers)


@dataclass(frozen=True)
class DecoderCost:
    """Cost of a prompt and of the first token behind it."""

    prefill: PhaseCost
    decode: PhaseCost


def prompt_map(media: list[Tensor], text_before: int, text_after: int) -> Tensor:
    """TokenMap (1, n, K) of a prompt: text, the media one behind the other, text.

    Args:
        media: Token map (N_i, K) of each medium.
        text_before: Tokens of text in front.
        text_after: Tokens of text behind.
    """
    pieces = [TOKEN.set(table.cpu(), media=number) for number, table in enumerate(media)]
    return torch.cat([TOKEN.make(text_before), *pieces, TOKEN.make(text_after)])[None]


@torch.no_grad()
def count_plans(
    language_model: PreTrainedModel,
    stack: MechanismStack,
    token_map: Tensor,
    side: Mapping[str, Any] | None = None,
) -> DecoderCost:
    """Count what a prompt and one decoding step cost.

    Args:
        language_model: Headless text model; its weights are not read and may be on ``meta``.
        stack: The mechanisms; an empty one counts the stock model.
        token_map (Tensor): (B, n, K) int64 on the CPU, without padding.
        side: Side inputs of the mechanisms, on the device of their weights.

    Returns:
        Counts of prefill and of one decoding step behind it.

    Raises:
        UsageError: If a mechanism refuses the call, or the family is not supported.
    """
    check_family(language_model.config)
    model: Any = language_model
    cache = SparseCache(len(model.layers))
    prefill = _phase(model, stack, cache, token_map, side or {})
    step = TOKEN.make(1)[None].expand(token_map.shape[0], -1, -1)
    return DecoderCost(prefill, _phase(model, stack, cache, step, {}))


def _phase(
    model: Any,
    stack: MechanismStack,
    cache: SparseCache,
    token_map: Tensor,
    side: Mapping[str, Any],
) -> PhaseCost:
    batch, rows = token_map.shape[:2]
    positions = (torch.arange(rows) + cache.seen).expand(batch, -1)
    valid = torch.ones(batch, rows, dtype=torch.bool)
    state = SequenceState(
        # real rows that take no memory: mechanisms may gather them
        hidden=torch.zeros(1, 1, 1).expand(batch, rows, model.config.hidden_size),
        position_ids=positions,
        valid=valid,
        token_map=token_map,
        side=side,
        cache=cache,
    )
    scorer = ScoringCounter(model, replace(state, cache=None))
    keep = stack.shorten(replace(state, cache=cache if cache.seen else None), scorer)
    state.order = cache.open_call(positions, valid, token_map)
    if keep is not None:
        state = restarted(state, keep)
    state = stack.begin(state, cache)
    counts: list[LayerCount] = []
    stored = 0
    for number, layer in enumerate(model.layers):
        state.layer = number
        state = stack.before_layer(number, state)
        plan = stack.plan(number, state)
        parts = LayerModules.of(layer, model.config.model_type)
        counts.append(count_layer(parts, plan, state))
        held = cache.sparse_layers[number]
        held.note(Pending.of(held.index, state.row_order, plan.cache_write))
        stored += held.stored * batch * counts[-1].values_per_key
    return PhaseCost(tuple(counts), stored, scorer.flops)
