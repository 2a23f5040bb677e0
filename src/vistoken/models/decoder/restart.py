"""Shortening a prompt before its prefill: score rows in the first layers, choose, start again.

The layers that score are the stock ones and leave nothing behind: no cache, no record. Only the
shortened prompt runs through the decoder and its mechanisms, at positions counted anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TextRole
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.drop import drop_rows
from vistoken.models.decoder.families import LayerModules, layer_patterns
from vistoken.models.decoder.key_scores import mean_key_scores
from vistoken.models.decoder.layer_run import LayerRunner
from vistoken.models.decoder.masks import CallMasks
from vistoken.models.decoder.plan import STOCK_LAYER
from vistoken.models.decoder.state import SequenceState


class LayerScorer:
    """Scores of a prompt's rows by a language model's own first layers.

    Args:
        language_model: Headless text model of a supported family.
        state: The prompt.
    """

    def __init__(self, language_model: PreTrainedModel, state: SequenceState) -> None:
        self._model: Any = language_model
        self._patterns = layer_patterns(language_model)
        self._state = state

    @torch.no_grad()
    def key_scores(self, layer: int, rows: Tensor, cols: Tensor, after: Tensor) -> Tensor:
        """See :class:`~vistoken.models.decoder.mechanism.PromptScorer`."""
        state, config = self._state, self._model.config
        rotation = self._model.rotary_emb(state.hidden, state.position_ids.to(state.hidden.device))
        hidden = self._input_of(layer, rotation)
        sliding = self._patterns[layer] == "sliding_attention"
        return mean_key_scores(
            LayerModules.of(self._model.layers[layer], config.model_type),
            hidden,
            rotation,
            positions=state.position_ids,
            valid=state.valid,
            window=config.sliding_window if sliding else None,
            rows=rows,
            cols=cols,
            after=after,
        )

    def _input_of(self, layer: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Hidden states (B, n, D) in front of a layer."""
        given, config = self._state, self._model.config
        state = SequenceState(given.hidden, given.position_ids, given.valid)
        padded = not bool(given.valid.all())
        masks = CallMasks(
            config,
            attention_mask=given.valid.to(given.hidden.device).long() if padded else None,
            # without gaps: the stock mask builder takes a gap for the border of packed samples
            position_ids=torch.arange(given.valid.shape[1], device=given.hidden.device)[None],
            valid=state.valid,
            cache=None,
        )
        runner = LayerRunner(config.model_type, masks, None, False, {})
        for number in range(layer):
            state.layer = number
            state.hidden = runner.run(
                self._model.layers[number], self._patterns[number], state, STOCK_LAYER, rotation
            )
        return state.hidden


def restarted(state: SequenceState, keep: Tensor) -> SequenceState:
    """Begin with the kept rows alone, at positions 0, 1, 2, ...

    Sequences that lose nothing keep their positions. The cache has then seen all rows, stores the
    kept ones, and counts the positions of later rows itself.

    Args:
        state: The prompt, entered into its cache.
        keep (Tensor): (B, n) bool.
    """
    changed = (state.valid & ~keep).any(1, keepdim=True)
    state, _ = drop_rows(state, keep)
    positions = torch.where(changed, _counted(state.valid, state), state.position_ids)
    if isinstance(state.cache, SparseCache):
        state.cache.restate(state.row_order, positions)
        last = positions.masked_fill(~state.valid, -1).amax(1)
        state.cache.set_next_positions(last + 1)
    return replace(state, position_ids=positions)


def kept_positions(state: SequenceState, keep: Tensor) -> Tensor:
    """Positions (B, n) that :func:`restarted` would give the kept rows, without dropping any.

    Args:
        state: The prompt.
        keep (Tensor): (B, n) bool.
    """
    changed = (state.valid & ~keep).any(1, keepdim=True)
    return torch.where(changed, _counted(state.valid & keep, state), state.position_ids)


def _counted(rows: Tensor, state: SequenceState) -> Tensor:
    """0, 1, 2, ... (B, n) along the marked rows."""
    return (rows.long().cumsum(1) - 1).clamp(min=0).to(state.position_ids.dtype)


def prompt_rows(state: SequenceState) -> Tensor:
    """Rows (B, n) bool that are asked, not answered: all but what the assistant wrote last.

    Without a cache every step of generation reads its own answer again, which must not change what
    is chosen; the text map tells the two apart.
    """
    told = state.valid & (TOKEN.get(state.table, "role") != TextRole.ASSISTANT)
    return state.valid & (told.flip(1).cumsum(1).flip(1) > 0)


def refuse_pieces(state: SequenceState, mechanism: str, chosen: Callable[[Tensor], Tensor]) -> None:
    """Refuse a prompt in pieces, whose first pieces would be chosen by what they alone say.

    Args:
        state: The call's rows, not yet in the cache.
        mechanism: Name for the message.
        chosen: Of a TokenMap (B, n, K) the rows (B, n) among which the mechanism chooses.

    Raises:
        UsageError: If such rows come behind cached ones, or more than a step comes behind them.
    """
    cache = state.cache
    if cache is None or cache.get_seq_length() == 0:
        return
    here = state.token_map is not None and bool(chosen(state.token_map).any())
    known = cache.token_map if isinstance(cache, SparseCache) else None
    more = state.valid.shape[1] > 1 and known is not None and bool(chosen(known).any())
    if here or more:
        raise UsageError(
            f"the mechanism {mechanism!r} chooses tokens by the whole prompt, but this call brings "
            f"{state.valid.shape[1]} more rows behind {cache.get_seq_length()} cached ones; give "
            "the prompt in one call: no prefill_chunk_size, no cache of an earlier conversation."
        )
