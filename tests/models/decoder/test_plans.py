"""What mechanisms may tell a layer, and how several plans merge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.models.decoder import (
    STOCK_LAYER,
    FfnChannels,
    Inject,
    LayerPlan,
    MechanismStack,
    NoOp,
    Rotary,
    ScoreRequest,
    merge_plans,
    run_decoder,
)

from .mechanisms import HEADS, ROWS, Tell, random_bias, random_mask, run

Build = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("family", ["llama-gqa", "mistral-mha", "qwen2-gqa", "qwen3-mha"])
def test_mask_is_and_of_causality_padding_and_plan(
    family: str, attention: str, heads: int, build: Build, ids: Tensor, padding: Tensor
) -> None:
    model = build(family, "sdpa")
    mask = random_mask(heads)
    causal = torch.ones(ROWS, ROWS, dtype=torch.bool).tril()
    ready = mask & causal & padding.bool()[:, None, None]
    expected = model.model(input_ids=ids, attention_mask=ready).last_hidden_state
    told = run(
        build(family, attention), Tell(LayerPlan(mask=mask)), input_ids=ids, attention_mask=padding
    )
    keep = padding.bool()
    torch.testing.assert_close(told[keep], expected[keep], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral-sliding", "qwen2-sliding", "qwen3-sliding"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plan_keeps_the_window(family: str, attention: str, build: Build, ids: Tensor) -> None:
    model = build(family, attention)
    everything = LayerPlan(mask=torch.ones(1, 1, ROWS, ROWS, dtype=torch.bool))
    expected = model.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(run(model, Tell(everything), input_ids=ids), expected)


def test_additive_mask_given_by_the_caller_is_narrowed(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    mask = random_mask(1)
    causal = torch.ones(ROWS, ROWS, dtype=torch.bool).tril()
    given = torch.where(causal, 0.5, torch.finfo(torch.float32).min)[None, None].expand(
        3, 1, -1, -1
    )
    expected = run(model, Tell(LayerPlan(mask=mask)), input_ids=ids)
    actual = run(model, Tell(LayerPlan(mask=mask)), input_ids=ids, attention_mask=given)
    torch.testing.assert_close(actual, expected)  # a constant on all keys changes nothing


@pytest.mark.parametrize(("heads", "queries"), [(1, 1), (1, ROWS), (HEADS, 1), (HEADS, ROWS)])
def test_bias_is_added_before_the_softmax(
    heads: int, queries: int, build: Build, ids: Tensor, padding: Tensor
) -> None:
    bias = random_bias(heads, queries)
    causal = torch.ones(ROWS, ROWS, dtype=torch.bool).tril() & padding.bool()[:, None, None]
    full = torch.where(causal, bias.expand(-1, -1, ROWS, -1), torch.finfo(torch.float32).min)
    stock = build("llama-gqa", "sdpa").model
    expected = stock(input_ids=ids, attention_mask=full).last_hidden_state
    plain = stock(input_ids=ids, attention_mask=padding).last_hidden_state
    keep = padding.bool()
    assert not torch.allclose(plain[keep], expected[keep], atol=1e-2)
    for attention in ("sdpa", "eager"):  # eager drops a `position_bias` argument silently
        model = build("llama-gqa", attention)
        told = run(model, Tell(LayerPlan(key_bias=bias)), input_ids=ids, attention_mask=padding)
        torch.testing.assert_close(told[keep], expected[keep], rtol=1e-4, atol=1e-5)


def test_very_negative_bias_stays_finite(build: Build, ids: Tensor, padding: Tensor) -> None:
    plan = LayerPlan(key_bias=torch.full((1, 1, 1, ROWS), torch.finfo(torch.float32).min))
    for attention in ("sdpa", "eager"):
        model = build("llama-gqa", attention)
        assert run(model, Tell(plan), input_ids=ids, attention_mask=padding).isfinite().all()


def test_bias_takes_the_hidden_dtype(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa").bfloat16()
    hidden = run(model, Tell(LayerPlan(key_bias=random_bias(1, 1))), input_ids=ids)
    assert hidden.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_bias_passes_gradients_through_checkpointing(build: Build, ids: Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build("llama-gqa").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        bias = random_bias(1, 1).requires_grad_()
        run(model, Tell(LayerPlan(key_bias=bias * 2)), input_ids=ids).square().mean().backward()
        gradients.append(bias.grad)
    assert gradients[0] is not None
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_plans_start_at_their_layer(build: Build, ids: Tensor) -> None:
    """By the time a mask is needed, earlier layers have already filled their part of the cache."""
    model = build("llama-gqa")
    plan = LayerPlan(mask=torch.eye(ROWS, dtype=torch.bool)[None, None])
    outputs = run_decoder(
        model.model,
        stack=MechanismStack([Tell(plan, start=2)]),
        input_ids=ids,
        output_hidden_states=True,
    )
    stock = model.model(input_ids=ids, output_hidden_states=True)
    assert torch.equal(outputs.hidden_states[2], stock.hidden_states[2])
    assert not torch.allclose(outputs.last_hidden_state, stock.last_hidden_state, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)))
def test_merged_masks_and_biases(order: list[int]) -> None:
    plans = [
        LayerPlan(mask=random_mask(1, 1)),
        LayerPlan(mask=random_mask(HEADS, 2), key_bias=random_bias(1, 1, 3)),
        LayerPlan(key_bias=random_bias(HEADS, ROWS, 4)),
        LayerPlan(),
    ]
    merged = merge_plans(plans[number] for number in order)
    assert merged.mask is not None
    assert merged.key_bias is not None
    assert torch.equal(merged.mask, random_mask(1, 1) & random_mask(HEADS, 2))
    expected = random_bias(1, 1, 3) + random_bias(HEADS, ROWS, 4)
    torch.testing.assert_close(merged.key_bias, expected)


def test_merging_nothing_is_trivial() -> None:
    assert merge_plans([]).is_trivial
    assert merge_plans([LayerPlan(), LayerPlan()]).is_trivial
    assert not LayerPlan(mask=random_mask(1)).is_trivial
    assert not LayerPlan(key_bias=random_bias(1, 1)).is_trivial


def test_two_mechanisms_equal_their_merged_plan(build: Build, ids: Tensor) -> None:
    model = build("qwen3-gqa")
    first, second = LayerPlan(mask=random_mask(1)), LayerPlan(key_bias=random_bias(1, 1))
    both = run(model, Tell(first, "a"), Tell(second, "b"), input_ids=ids)
    once = run(model, Tell(LayerPlan(first.mask, second.key_bias)), input_ids=ids)
    assert torch.equal(both, once)


def test_two_mechanisms_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="'no-op' is configured 2 times"):
        MechanismStack([NoOp(), NoOp()])


def some_rows(seed: int) -> Tensor:
    return torch.rand(3, ROWS, generator=torch.Generator().manual_seed(seed)) > 0.4


def test_rows_keeps_and_writes_merge() -> None:
    first = LayerPlan(
        query_rows=some_rows(1),
        head_value_keep=torch.full((1, HEADS, ROWS), 0.5),
        head_out_keep=torch.full((1, HEADS, ROWS), 0.5),
        cache_write=some_rows(2),
        mask_or=random_mask(1, 3),
    )
    second = LayerPlan(
        query_rows=some_rows(4),
        head_value_keep=torch.full((3, HEADS, 1), 0.5),
        head_out_keep=torch.full((1, 1, ROWS), 3.0),
        cache_write=some_rows(5),
        mask_or=random_mask(1, 6),
    )
    merged = merge_plans([first, STOCK_LAYER, second])
    assert torch.equal(merged.query_rows, some_rows(1) & some_rows(4))
    assert torch.equal(merged.cache_write, some_rows(2) & some_rows(5))
    assert torch.equal(merged.mask_or, random_mask(1, 3) | random_mask(1, 6))
    assert (merged.head_value_keep == 0.25).all()
    assert (merged.head_out_keep == 1.5).all()
    assert merged.ffn_rows is None, "the merged query rows are the default again"


def test_ffn_rows_merge_with_what_the_other_plan_means() -> None:
    asking, every = LayerPlan(query_rows=some_rows(1)), LayerPlan(ffn_rows=some_rows(2))
    both = merge_plans([asking, every])
    assert torch.equal(both.query_rows, some_rows(1))
    assert torch.equal(both.ffn_rows, some_rows(1) & some_rows(2))


def test_pairs_that_exclude_each_other() -> None:
    rows = some_rows(1)
    table = (torch.ones(1, ROWS, 8), torch.zeros(1, ROWS, 8))
    pairs = {
        "inject keys and values into the same rows": LayerPlan(
            inject=(Inject(rows, lambda layer: torch.zeros(0)),)
        ),
        "cut the FFN of the same rows": LayerPlan(ffn_channels=(FfnChannels(rows, 4),)),
        "replace the rotary positions": LayerPlan(position_embeddings=Rotary(((table, table),))),
        "twice under the name 'a/b'": LayerPlan(need_scores=(ScoreRequest("a/b", rows, rows),)),
    }
    for message, plan in pairs.items():
        with pytest.raises(UsageError, match=message):
            merge_plans([plan, plan])
    cuts = [LayerPlan(ffn_channels=(FfnChannels(part, 4),)) for part in (rows, ~rows)]
    assert len(merge_plans(cuts).ffn_channels) == 2
    injected = [
        LayerPlan(inject=(Inject(part, lambda layer: torch.zeros(0)),)) for part in (rows, ~rows)
    ]
    assert len(merge_plans(injected).inject) == 2
