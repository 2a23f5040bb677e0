"""Positions may be fractions: they reach the rotary tables and the cache's ledger unrounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from vistoken.models.decoder import LayerPlan, MechanismStack, NoOp, SequenceState, SparseCache
from vistoken.models.decoder import run_decoder as decode

from .mechanisms import BATCH, ROWS, Drop, DropThird, Tell, Trivial, run

Build = Callable[..., PreTrainedModel]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

HALVES = torch.arange(ROWS)[None].expand(BATCH, -1) * 0.5
LATE = torch.arange(ROWS)[None] > 3
"""Rows that are queries; the others are keys and values only."""


class Halve(Trivial):
    """Halves the positions of a call before the first layer, as frames of a video might have."""

    name = "halve"

    def begin(self, state: SequenceState, cache: Cache | None) -> SequenceState:
        return replace(state, position_ids=state.position_ids * 0.5)


def test_equal_the_stock_model_in_both_paths(family: str, build: Build, ids: Tensor) -> None:
    model = build(family)
    seen = torch.ones_like(ids)  # without a mask the stock model takes gaps for packed samples
    given = {"input_ids": ids, "attention_mask": seen, "use_cache": False}
    stock = model.model(**given, position_ids=HALVES).last_hidden_state
    whole = model.model(**given, position_ids=HALVES.long()).last_hidden_state
    assert (stock - whole).abs().max() > 1e-2
    # an output gate of ones makes the layer be put together from its modules
    gate = LayerPlan(head_out_keep=torch.ones(1, 4, ROWS, dtype=torch.bool))
    for mechanism in (NoOp(), Tell(gate)):
        found = run(model, mechanism, **given, position_ids=HALVES)
        torch.testing.assert_close(found, stock, **CLOSE)


def test_rows_without_a_query_turn_their_keys_by_them(build: Build, ids: Tensor) -> None:
    """Fewer queries than keys: each side has tables of its own."""
    model = build("llama-gqa", num_hidden_layers=1)
    dense = run(model, NoOp(), input_ids=ids, position_ids=HALVES, attention_mask=ids.ne(-1))
    plan = LayerPlan(query_rows=LATE.expand(BATCH, -1))
    found = run(model, Tell(plan), input_ids=ids, position_ids=HALVES, attention_mask=ids.ne(-1))
    torch.testing.assert_close(found[:, 4:], dense[:, 4:], **CLOSE)


def test_stay_fractions_where_rows_are_dropped(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    kept = DropThird().kept(torch.arange(ROWS).expand(BATCH, -1))[0]
    given = {"input_ids": ids, "position_ids": HALVES, "attention_mask": ids.ne(-1)}
    without = run(model, Drop(kept, 1), **given, use_cache=False)
    cached = run(model, DropThird(), **given, use_cache=True)
    torch.testing.assert_close(cached, without, **CLOSE)


def test_low_precision_weights_leave_them_as_they_are(build: Build, ids: Tensor) -> None:
    """In bfloat16, 300.25 would be 300."""
    model = build("llama-gqa", num_hidden_layers=1).bfloat16()
    tables = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: tables.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    far = HALVES * 0.5 + 300
    run(model, NoOp(), input_ids=ids, position_ids=far, attention_mask=ids.ne(-1))
    rates = model.model.rotary_emb.inv_freq
    angles = (far[:1, :, None].double() * rates.double()).repeat(1, 1, 2)
    torch.testing.assert_close(tables[0][0][:1].double(), angles.cos(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("prompt_in_halves", [True, False])
def test_a_cache_keeps_them_and_counts_on_from_them(
    build: Build, ids: Tensor, prompt_in_halves: bool
) -> None:
    """Whole numbers in the first call must not round those of the second."""
    model, cache = build("llama-gqa"), SparseCache(3)
    first = HALVES[:, :6] if prompt_in_halves else torch.arange(6).expand(BATCH, -1)
    second = first[:, -1:] + 0.25
    for rows, positions in ((ids[:, :6], first), (ids[:, 6:7], second)):
        run(model, Trivial(), input_ids=rows, position_ids=positions, past_key_values=cache)
    assert cache.position_ids is not None
    assert cache.next_positions is not None
    assert torch.equal(cache.position_ids, torch.cat([first.float(), second.float()], dim=1))
    assert torch.equal(cache.next_positions.float(), second[:, -1] + 1)


def test_a_mechanism_may_make_them_of_whole_ones(build: Build, ids: Tensor) -> None:
    model, cache = build("mistral-sliding"), SparseCache(3)
    given = {"input_ids": ids, "attention_mask": ids.ne(-1).long()}
    stack = MechanismStack([Halve()])
    found = decode(model.model, stack=stack, **given, past_key_values=cache).last_hidden_state
    wanted = run(model, Trivial(), **given, position_ids=HALVES, use_cache=True)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert cache.position_ids is not None
    assert torch.equal(cache.position_ids, HALVES)
