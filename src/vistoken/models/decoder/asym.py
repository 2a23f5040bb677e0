"""A decoder layer put together from its own modules, for plans that the stock layer cannot run.

The one re-composition for every supported family: norm, projections, optional head norms, rotary,
cache, attention, output projection, norm, FFN. Rows that have no query skip the query and output
projections, rows without FFN skip it, sliced channels and heads are not computed: what a plan
leaves out is not worked out and masked, it is not worked out. Sizes come from the modules, so
layers may differ.

B batch, n rows, q query rows, k keys, H query heads, G key/value heads, E head size, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.models._compat import attend, checkpointed, record_output
from vistoken.models.decoder.families import LayerModules, check_family
from vistoken.models.decoder.ffn import feed_forward
from vistoken.models.decoder.heads import kept_heads, scale_values
from vistoken.models.decoder.plan import Inject, LayerPlan, ReadyKV, Rotary, Rotation
from vistoken.models.decoder.row_heads import HeadCut, head_cut
from vistoken.models.decoder.rows import RowSet
from vistoken.models.decoder.scores import read_scores
from vistoken.models.decoder.state import SequenceState


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """One run of one layer.

    Args:
        parts: The layer's modules.
        number: Its number.
        plan: What to do differently.
        mask: In the backend's form, for the query rows; None means causal.
        queries: The rows that are queries; None for all.
        rotation: The model's own rotary tables of all rows.
        cache: Where keys and values go.
        options: Further arguments of the attention function.
    """

    parts: LayerModules
    number: int
    plan: LayerPlan
    mask: Tensor | None
    queries: RowSet | None
    rotation: Rotation
    cache: Cache | None
    options: dict[str, Any]


def run_recomposed(call: LayerCall, state: SequenceState) -> Tensor:
    """Run a layer by its plan.

    Args:
        call: The layer and what to do.
        state: Its input; receives the scores that the plan asks for.

    Returns:
        (B, n, D), the hidden states behind the layer.

    Raises:
        UsageError: If the plan contradicts itself or the layer.
    """
    _check(call, state)
    names = [request.name for request in call.plan.need_scores]
    cut = head_cut(call.parts, call.plan, call.queries, state)

    def forward(hidden: Tensor) -> tuple[Tensor | None, ...]:
        return _forward(call, cut, hidden)

    # noise and predictors of mechanisms lie outside of what is computed again
    output, weights, *scores = checkpointed(call.parts.layer, forward, state.hidden)
    if output is None:
        raise RuntimeError("a layer gave no output")
    state.scores = dict(zip(names, cast("list[Tensor]", scores), strict=True))
    record_output("hidden_states", output, before=state.hidden)
    record_output("attentions", weights)
    return output


def project_kv(language_model: PreTrainedModel, layer: int, rows: Tensor) -> ReadyKV:
    """Keys and values of rows in one decoder layer, to be injected as often as wanted.

    Args:
        language_model: Headless text model of a supported family.
        layer: Number of the layer.
        rows (Tensor): (N, D), content before the input norm.

    Returns:
        Keys before rotation, and values.
    """
    check_family(language_model.config)
    stock: Any = language_model
    parts = LayerModules.of(stock.layers[layer], stock.config.model_type)
    keys, values = _project(parts, parts.input_norm(rows))
    return ReadyKV(keys, values)


def _forward(call: LayerCall, cut: HeadCut | None, hidden: Tensor) -> tuple[Tensor | None, ...]:
    parts, plan, queries = call.parts, call.plan, call.queries
    normed = parts.input_norm(_key_source(plan, hidden, call.number))
    keys, values = _keys_and_values(parts, plan, cut, normed)
    asking = normed if queries is None else queries.gather(normed, dim=1)
    query = parts.heads(parts.q_proj(asking), parts.q_norm) if cut is None else cut.queries(asking)
    query, keys = _rotated(call, query.transpose(1, 2), keys.transpose(1, 2))
    values = values.transpose(1, 2)
    if call.cache is not None:
        keys, values = call.cache.update(keys, values, call.number)
    scaling = parts.scaling
    if plan.position_embeddings is not None:
        scaling *= plan.position_embeddings.scale
    scores = read_scores(plan.need_scores, query, keys, call.mask, scaling, queries)
    if query.shape[2] == 0:  # attention functions stumble over no query at all
        return feed_forward(parts, plan, hidden), None, *scores
    keys, values, groups = scale_values(keys, values, plan.head_value_keep, query.shape[1])
    mask, dead = _safe(call.mask, plan)
    output, weights = attend(
        parts.attention, query, keys, values, mask, groups=groups, scaling=scaling, **call.options
    )  # (B, q, H, E)
    output = kept_heads(output, plan.head_out_keep, queries, dead)
    change = parts.o_proj(output.flatten(2)) if cut is None else cut.output(output)
    if queries is None:
        hidden = hidden + change
    else:
        hidden = queries.add_to(hidden, change)
    return feed_forward(parts, plan, hidden), weights, *scores


def _key_source(plan: LayerPlan, hidden: Tensor, number: int) -> Tensor:
    """Rows that keys and values are made of: the hidden states, some of them overwritten."""
    for inject in plan.inject:
        if not isinstance(inject.source, ReadyKV):
            rows = inject.source(number).to(hidden.dtype)
            _require_count(inject, rows.shape[0], number)
            places = torch.nonzero(inject.rows.flatten()).flatten().to(hidden.device)
            hidden = hidden.flatten(0, 1).index_copy(0, places, rows).view_as(hidden)
    return hidden


def _keys_and_values(
    parts: LayerModules, plan: LayerPlan, cut: HeadCut | None, normed: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values (B, n, G, E) before rotation; ready ones are put in, not computed."""
    ready = [(part, part.source) for part in plan.inject if isinstance(part.source, ReadyKV)]
    batch, rows = normed.shape[:2]
    flat = normed.flatten(0, 1)
    if not ready:
        if cut is None:
            return _project(parts, normed)
        keys, values = cut.keys_and_values(flat)
        return keys.unflatten(0, (batch, rows)), values.unflatten(0, (batch, rows))
    taken = torch.zeros(batch * rows, dtype=torch.bool, device=normed.device)
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    for inject, source in ready:
        _require_count(inject, source.keys.shape[0], parts.number)
        places = torch.nonzero(inject.rows.flatten()).flatten()
        taken[places] = True
        pieces.append((places, source.keys.to(normed.dtype), source.values.to(normed.dtype)))
    places = torch.nonzero(~taken).flatten()
    if cut is None:
        pieces.append((places, *_project(parts, flat[places])))
    else:
        keys, values = cut.keys_and_values(flat)
        pieces.append((places, keys[places], values[places]))
    order = torch.cat([places for places, _, _ in pieces]).argsort()
    keys = torch.cat([keys for _, keys, _ in pieces])[order]
    values = torch.cat([values for _, _, values in pieces])[order]
    return keys.unflatten(0, (batch, rows)), values.unflatten(0, (batch, rows))


def _project(parts: LayerModules, normed: Tensor) -> tuple[Tensor, Tensor]:
    keys = parts.heads(parts.k_proj(normed), parts.k_norm)
    return keys, parts.heads(parts.v_proj(normed), None)


def _require_count(inject: Inject, given: int, number: int) -> None:
    wanted = int(inject.rows.sum())
    if wanted != given:
        raise UsageError(
            f"a mechanism injects {given} rows into layer {number} where the batch has {wanted} "
            "slots for them; features and layout must agree."
        )


def _rotated(call: LayerCall, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries (B, H, q, E) and new keys (B, G, n, E) by the plan's tables or the model's."""
    rotary = call.plan.position_embeddings or Rotary(((call.rotation, call.rotation),))
    queries = call.queries

    def of_queries(table: Tensor) -> Tensor:
        return table if queries is None else queries.gather(table, dim=1)

    turned = [
        (rotate(query, (of_queries(q[0]), of_queries(q[1]))), rotate(keys, k))
        for q, k in rotary.pairs
    ]
    if len(turned) == 1:
        return turned[0]
    return torch.cat([q for q, _ in turned], dim=-1), torch.cat([k for _, k in turned], dim=-1)


def rotate(states: Tensor, rotation: Rotation) -> Tensor:
    """Rotate states (B, heads, rows, E) by tables (B or 1, rows, E)."""
    cos, sin = (table[:, None].to(states) for table in rotation)
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


def _safe(mask: Tensor | None, plan: LayerPlan) -> tuple[Tensor | None, Tensor | None]:
    """Let rows whose keys a plan has all hidden attend somewhere; they are set to 0 afterwards.

    A softmax over nothing is not a number, or an average over everything: backends differ.
    """
    if mask is None or plan.mask is None:
        return mask, None
    if mask.dtype == torch.bool:
        dead = ~mask.any(-1, keepdim=True)
        return mask | dead, dead
    lowest = torch.finfo(mask.dtype).min
    return mask, (mask <= lowest).all(-1, keepdim=True)


def _overlap(rows: Tensor, others: Tensor) -> bool:
    return bool((rows & others).any())


def _check(call: LayerCall, state: SequenceState) -> None:
    plan = call.plan
    for inject in plan.inject:
        asking = None if call.queries is None else call.queries.mask
        if asking is None or state.memo.get(
            "injected queries", (asking, inject.rows), partial(_overlap, asking, inject.rows)
        ):
            raise UsageError(
                f"a mechanism injects keys and values into query rows of layer {call.number}; "
                "leave these rows out of query_rows."
            )
    if plan.ffn_channels and not call.parts.is_gated:
        raise UsageError(
            f"layer {call.number} has experts or another FFN of its own, which ffn_channels cannot "
            "cut; leave one of the two mechanisms out."
        )
