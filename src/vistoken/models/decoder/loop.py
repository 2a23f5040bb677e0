"""Our layer loop over the layers of a stock text model.

The stock model keeps its weights, its layers and their names; only the loop around the layers is
ours, so that mechanisms can act before, inside and after each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.models._compat import as_model_forward
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.call_rows import row_positions, valid_rows
from vistoken.models.decoder.families import check_own_modules, layer_patterns
from vistoken.models.decoder.layer_run import LayerRunner
from vistoken.models.decoder.masks import AttentionMask, CallMasks
from vistoken.models.decoder.restart import LayerScorer, restarted
from vistoken.models.decoder.stack import MechanismStack
from vistoken.models.decoder.state import SequenceState
from vistoken.models.outputs import DecoderOutput


class _TextModel(Protocol):
    """The modules that every supported text model has."""

    config: PretrainedConfig
    embed_tokens: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module
    rotary_emb: nn.Module


def run_decoder(
    language_model: PreTrainedModel,
    *,
    stack: MechanismStack,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    attention_mask: AttentionMask = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = None,
    token_map: Tensor | None = None,
    side: Mapping[str, Any] | None = None,
    aux: dict[str, Tensor] | None = None,
    check_room: Callable[[SequenceState, Tensor | None], None] | None = None,
    **kwargs: Any,
) -> DecoderOutput:
    """Run a stock text model through our loop; with an empty stack it equals the model's forward.

    B batch, n rows of this call, k keys including cached ones, D hidden size, K table columns.

    Args:
        language_model: Headless text model of a supported family.
        stack: The active mechanisms.
        input_ids: (B, n) int64; exactly one of ``input_ids`` and ``inputs_embeds``.
        inputs_embeds: (B, n, D).
        attention_mask: (B, k) padding mask, a ready 4-D mask (packing; goes through as it is), or
            one per attention pattern as ``generate`` prepares them.
        position_ids: (B, n) or (1, n); by default counted on from the cache.
        past_key_values: Cache to read and extend.
        use_cache: By default as the configuration says; makes a cache if none is given.
        token_map: (B, n, K) int64, the TokenMap of these rows.
        side: Further outputs of encoder and connector that mechanisms read.
        aux: Receives the mechanisms' losses and statistics.
        check_room: Given the rows and which of them (B, n) mechanisms keep, None where all are
            kept, refuses a prompt that is too long; called before anything is written.
        **kwargs: Go to every layer and its attention function, as in the stock model;
            ``output_hidden_states`` and ``output_attentions`` work as there.

    Returns:
        The stock model's output: ``last_hidden_state`` (B, n, D), fewer rows if a mechanism
        dropped some, the cache, and what was asked to be recorded.

    Raises:
        UsageError: If the family is not supported, its modules are replaced, or a mechanism
            excludes the call.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise UsageError("give the decoder either input_ids or inputs_embeds, and not both.")
    packed = isinstance(attention_mask, Tensor) and attention_mask.dim() == 4
    stack.check_call(past_key_values, packed=packed)
    if len(stack):
        check_own_modules(language_model)
    model = cast(_TextModel, language_model)
    hidden = model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    keep: Tensor | None = None
    shortens = stack.shortens and not language_model.training  # what is learned is all of it
    if shortens or check_room is not None:
        prompt = SequenceState(
            hidden=hidden,
            position_ids=row_positions(hidden, position_ids, past_key_values),
            valid=valid_rows(hidden, attention_mask, token_map),
            token_map=token_map,
            cache=past_key_values,
        )
        _require_rows(prompt)
        if shortens:
            keep = stack.shorten(prompt, LayerScorer(language_model, prompt))
        if check_room is not None:
            check_room(prompt, keep)
    return _run_layers(
        language_model,
        stack=stack,
        keep=keep,
        hidden=hidden,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=past_key_values,
        use_cache=use_cache,
        token_map=token_map,
        side={} if side is None else side,
        aux={} if aux is None else aux,
        **kwargs,
    )


@as_model_forward
def _run_layers(
    language_model: PreTrainedModel,
    *,
    stack: MechanismStack,
    keep: Tensor | None,
    hidden: Tensor,
    attention_mask: AttentionMask,
    position_ids: Tensor | None,
    past_key_values: Cache | None,
    use_cache: bool | None,
    token_map: Tensor | None,
    side: Mapping[str, Any],
    aux: dict[str, Tensor],
    **kwargs: Any,
) -> DecoderOutput:
    patterns = layer_patterns(language_model)
    model = cast(_TextModel, language_model)
    if use_cache and past_key_values is None:
        past_key_values = make_cache(model.config, stack)
    state = SequenceState(
        hidden=hidden,
        position_ids=row_positions(hidden, position_ids, past_key_values),
        valid=valid_rows(hidden, attention_mask, token_map),
        token_map=token_map,
        side=side,
        cache=past_key_values,
    )
    _require_rows(state)
    started = _enter_rows(state)
    masks = CallMasks(
        model.config,
        attention_mask=attention_mask,
        position_ids=state.position_ids,
        valid=state.valid,
        cache=past_key_values,
    )
    valid = state.valid
    state = _begin(stack, state if keep is None else restarted(state, keep))
    rotary, rotary_of = _rotary(model, state), state.position_ids
    runner = LayerRunner(model.config.model_type, masks, past_key_values, use_cache, kwargs)
    # like the stock loop, stop at the configured number of layers
    for number, (layer, pattern) in enumerate(zip(model.layers, patterns, strict=False)):
        state.layer = number
        state = stack.before_layer(number, state)
        if state.position_ids is not rotary_of:
            rotary = _rotary(model, state)
            rotary_of = state.position_ids
        plan = stack.plan(number, state)
        state.hidden = runner.run(layer, pattern, state, plan, rotary)
        stack.after_layer(number, state, aux)
    # where the longest sequence kept all its rows, shorter ones have moved all the same
    dropped = state.valid is not valid and state.order is not None
    return DecoderOutput(
        last_hidden_state=model.norm(state.hidden),
        past_key_values=past_key_values if use_cache else None,
        rows=_rows_of_call(state, started) if dropped else None,
    )


def _rotary(model: _TextModel, state: SequenceState) -> tuple[Tensor, Tensor]:
    # tables may lie on the CPU while the weights are on the meta device
    tables: tuple[Tensor, Tensor] = model.rotary_emb(
        state.hidden, state.position_ids.to(state.hidden.device)
    )
    return tables


def make_cache(config: PretrainedConfig, stack: MechanismStack) -> Cache:
    """The cache that a stack of mechanisms needs.

    Args:
        config: The text model's configuration.
        stack: The active mechanisms.
    """
    if stack.own_cache:
        return SparseCache(cast(int, config.num_hidden_layers))
    return DynamicCache(config=config)


def _enter_rows(state: SequenceState) -> int:
    """Enter the call's rows into a cache that keeps a ledger; number of rows seen before."""
    if not isinstance(state.cache, SparseCache):
        return 0
    started = state.cache.seen
    state.cache.check_batch(state.valid.shape[0])
    counted = state.cache.positions_for(state.valid.shape[1])
    if counted is not None:
        state.position_ids = counted
    state.order = state.cache.open_call(state.position_ids, state.valid, state.token_map)
    return started


def _begin(stack: MechanismStack, state: SequenceState) -> SequenceState:
    positions, cache = state.position_ids, state.cache
    state = stack.begin(state, cache)
    if state.position_ids is not positions and isinstance(cache, SparseCache):
        cache.restate(state.row_order, state.position_ids)
    return state


def _rows_of_call(state: SequenceState, started: int) -> Tensor:
    order = state.row_order
    return torch.where(order >= 0, order - started, -1)


def _require_rows(state: SequenceState) -> None:
    if not state.rows_agree():
        table = None if state.token_map is None else tuple(state.token_map.shape)
        raise UsageError(
            f"the decoder got {tuple(state.hidden.shape[:2])} rows with position_ids of "
            f"{tuple(state.position_ids.shape)}, an attention_mask that covers "
            f"{tuple(state.valid.shape)} of them and a token_map of {table}; they must agree."
        )
