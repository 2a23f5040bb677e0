"""What mechanisms may tell a layer, and the traps of attention backends and mask builders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vistoken.core.errors import UsageError
from vistoken.core.parts import PartFlags
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    LayerPlan,
    MechanismStack,
    NoOp,
    SequenceState,
    merge_plans,
    run_decoder,
)

Build = Callable[..., PreTrainedModel]
BATCH, ROWS, HEADS = 3, 11, 4


class Tell(NoOp):
    """Tells the layers from ``start`` on the same plan."""

    def __init__(self, plan: LayerPlan, name: str = "tell", start: int = 0) -> None:
        self.told, self.name, self.start = plan, name, start

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        return self.told if layer >= self.start else LayerPlan()


class Drop(NoOp):
    """Keeps the given rows from one layer on."""

    name = "drop"

    def __init__(self, keep: Tensor, layer: int) -> None:
        self.keep, self.layer = keep, layer

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        if layer != self.layer:
            return state
        return SequenceState(
            hidden=state.hidden[:, self.keep],
            position_ids=state.position_ids[:, self.keep],
            valid=state.valid[:, self.keep],
            layer=layer,
        )


class Watch(NoOp):
    """Writes down what it sees."""

    name = "watch"

    def __init__(self) -> None:
        self.before: list[SequenceState] = []

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        self.before.append(state)
        state.extra["watch"] = state.hidden[..., :1]
        return state

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        assert state.layer == layer
        aux[f"watch/{layer}"] = (state.hidden[..., :1] - state.extra["watch"]).abs().mean()


def run(model: PreTrainedModel, *mechanisms: NoOp, **inputs: Any) -> Tensor:
    stack = MechanismStack(mechanisms)
    return run_decoder(model.model, stack=stack, **inputs).last_hidden_state


def random_mask(heads: int, seed: int = 0) -> Tensor:
    """Keeps the diagonal, so that no valid row is left without keys."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(BATCH, heads, ROWS, ROWS, generator=generator) > 0.4
    return mask | torch.eye(ROWS, dtype=torch.bool)


def random_bias(heads: int, queries: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, heads, queries, ROWS, generator=generator)


@pytest.fixture
def attention_name() -> Iterator[str]:
    """A name for a foreign attention function, forgotten afterwards."""
    name = "foreign"
    AttentionInterface.register(name, sdpa_attention_forward)
    yield name
    AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop(name, None)


# ---- what a plan means


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


# ---- merging


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


# ---- state


def test_mechanisms_see_the_rows(build: Build, ids: Tensor, padding: Tensor) -> None:
    watch, aux = Watch(), dict[str, Tensor]()
    token_map = torch.stack([TOKEN.make(ROWS, sample=row) for row in range(BATCH)])
    run(
        build("llama-gqa"),
        watch,
        NoOp(),
        input_ids=ids,
        attention_mask=padding,
        token_map=token_map,
        side={"raw": 1},
        aux=aux,
    )
    assert sorted(aux) == ["watch/0", "watch/1", "watch/2"]
    assert all(value > 0 for value in aux.values())
    state = watch.before[0]
    assert torch.equal(state.valid, padding.bool())
    assert torch.equal(state.position_ids, torch.arange(ROWS).expand(BATCH, -1))
    assert state.token_map is token_map
    assert state.side == {"raw": 1}


def test_valid_rows_of_a_decoding_step(build: Build, ids: Tensor) -> None:
    model, watch = build("llama-gqa"), Watch()
    mask = torch.ones(BATCH, ROWS + 1, dtype=torch.int64)
    cache = model.model(input_ids=ids, attention_mask=mask[:, :-1]).past_key_values
    run(
        model,
        watch,
        input_ids=ids[:, :1],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    assert torch.equal(watch.before[0].valid, torch.ones(BATCH, 1, dtype=torch.bool))
    assert (watch.before[0].position_ids == ROWS).all()


def test_valid_rows_under_a_ready_mask_come_from_the_token_map(build: Build, ids: Tensor) -> None:
    token_map = TOKEN.make(ROWS)[None].repeat(BATCH, 1, 1)
    token_map[1, :2] = TOKEN.make(2, kind=TokenKind.PAD)
    ready = torch.ones(BATCH, 1, ROWS, ROWS, dtype=torch.bool).tril()
    watch = Watch()
    run(build("llama-gqa"), watch, input_ids=ids, attention_mask=ready, token_map=token_map)
    valid = torch.ones(BATCH, ROWS, dtype=torch.bool)
    valid[1, :2] = False
    assert torch.equal(watch.before[0].valid, valid)


def test_disagreeing_tables_are_refused(build: Build, ids: Tensor) -> None:
    class Forgetful(NoOp):
        name = "forgetful"

        def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
            state.hidden = state.hidden[:, 1:]
            return state

    with pytest.raises(UsageError, match=r"'forgetful'.*gather position_ids"):
        run(build("llama-gqa"), Forgetful(), input_ids=ids)


# ---- dropping rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1])
def test_dropping_equals_masking(
    family: str, attention: str, layer: int, build: Build, ids: Tensor, padding: Tensor
) -> None:
    model = build(family, attention)
    keep = torch.tensor([0, 1, 2, 5, 6, 9, 10])  # gaps in the positions
    mask = torch.zeros(ROWS, dtype=torch.bool)
    mask[keep] = True
    plan = LayerPlan(mask=mask[None, None, None])
    call = {"input_ids": ids, "use_cache": False, "attention_mask": padding}
    masked = run(model, Tell(plan, start=layer), **call)[:, keep]
    dropped = run(model, Drop(keep, layer), **call)
    valid = padding.bool()[:, keep]
    torch.testing.assert_close(dropped[valid], masked[valid], rtol=1e-4, atol=1e-5)


def test_gaps_in_positions_are_no_borders(build: Build, ids: Tensor) -> None:
    """Without mask and cache the stock builder takes each gap for a packed sample's border."""
    model = build("llama-gqa")
    keep = torch.tensor([0, 1, 2, 5, 6, 9, 10])
    call = {"position_ids": keep[None], "use_cache": False}
    borders = model.model(input_ids=ids[:, keep], **call).last_hidden_state
    ones = torch.ones_like(ids[:, keep])
    expected = model.model(input_ids=ids[:, keep], attention_mask=ones, **call).last_hidden_state
    assert not torch.allclose(borders, expected, atol=1e-2)
    dropped = run(model, Drop(keep, 0), input_ids=ids, use_cache=False)
    torch.testing.assert_close(dropped, expected, rtol=1e-4, atol=1e-5)


def test_dropping_is_refused_where_it_would_go_wrong(build: Build, ids: Tensor) -> None:
    model, drop = build("llama-gqa"), Drop(torch.arange(5), 1)
    with pytest.raises(UsageError, match="use_cache=False"):
        run(model, drop, input_ids=ids, use_cache=True)
    ready = torch.ones(BATCH, 1, ROWS, ROWS, dtype=torch.bool).tril()
    with pytest.raises(UsageError, match="2-D attention_mask"):
        run(model, drop, input_ids=ids, attention_mask=ready, use_cache=False)
    positions = torch.cat([torch.arange(6), torch.arange(5)])[None]
    with pytest.raises(UsageError, match="2-D attention_mask"):
        run(model, drop, input_ids=ids, position_ids=positions, use_cache=False)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UsageError, match=r"flash_attention_2.*drops tokens.*sdpa"):
        run(model, Drop(torch.arange(5), 0), input_ids=ids, use_cache=False)


# ---- traps of attention backends


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("field", ["mask", "key_bias"])
def test_backends_that_cannot_honour_a_plan(
    attention: str, field: str, build: Build, ids: Tensor
) -> None:
    plan = LayerPlan(mask=random_mask(1)) if field == "mask" else LayerPlan(None, random_bias(1, 1))
    model = build("llama-gqa")
    model.config._attn_implementation = attention
    with pytest.raises(UsageError, match=f"{attention}.*{field.replace('_', ' ')}.*sdpa"):
        run(model, Tell(plan), input_ids=ids)


def test_name_without_mask_builder(
    build: Build, ids: Tensor, padding: Tensor, attention_name: str
) -> None:
    """Registered for attention only, a name gets no mask at all: padding would be attended."""
    model = build("llama-gqa")
    expected = run(model, NoOp(), input_ids=ids, attention_mask=padding)
    model.config._attn_implementation = attention_name
    with pytest.raises(UsageError, match="'foreign' has no mask builder"):
        run(model, NoOp(), input_ids=ids, attention_mask=padding)
    with pytest.raises(UsageError, match="'foreign' cannot honour a mechanism's mask"):
        run(model, Tell(LayerPlan(mask=random_mask(1))), input_ids=ids)
    AttentionMaskInterface.register(attention_name, sdpa_mask)
    assert torch.equal(run(model, NoOp(), input_ids=ids, attention_mask=padding), expected)
    with pytest.raises(UsageError, match="'foreign' cannot honour a mechanism's key bias"):
        run(model, Tell(LayerPlan(key_bias=random_bias(1, 1))), input_ids=ids)


@pytest.mark.parametrize("neutral", ["mask", "key_bias"])
def test_neutral_plan_on_a_filled_cache(
    family: str, neutral: str, build: Build, ids: Tensor
) -> None:
    """More keys than queries: sdpa's own causality would align them at the first key."""
    model = build(family)
    full = model.model(input_ids=ids, use_cache=False).last_hidden_state
    cache = model.model(input_ids=ids[:, :6], use_cache=True).past_key_values
    ones = torch.ones(1, 1, 1, 1)
    plan = LayerPlan(mask=ones.bool()) if neutral == "mask" else LayerPlan(key_bias=ones)
    chunk = run(model, Tell(plan), input_ids=ids[:, 6:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(chunk, full[:, 6:], rtol=1e-4, atol=1e-5)


def test_plan_on_a_longer_static_cache(build: Build, ids: Tensor) -> None:
    model, length = build("llama-gqa"), 20
    mask = torch.zeros(BATCH, 1, ROWS, length, dtype=torch.bool)
    mask[..., :ROWS] = random_mask(1)
    expected = run(model, Tell(LayerPlan(mask=random_mask(1))), input_ids=ids, use_cache=False)
    cache = StaticCache(config=model.config, max_cache_len=length)
    plan = LayerPlan(mask=mask)
    actual = run(model, Tell(plan), input_ids=ids, past_key_values=cache, use_cache=True)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_plans_that_do_not_fit_are_refused(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    for mask in (random_mask(1)[..., :5], random_mask(1)[:2], random_mask(1)[0]):
        with pytest.raises(UsageError, match="mask for layer 0 has shape"):
            run(model, Tell(LayerPlan(mask=mask)), input_ids=ids)
    with pytest.raises(UsageError, match="key_bias for layer 1 has shape"):
        run(model, Tell(LayerPlan(key_bias=torch.zeros(1, 1, 1, 3)), start=1), input_ids=ids)


# ---- flags


def test_flags_refuse_static_caches_and_packing(build: Build, ids: Tensor) -> None:
    class Picky(NoOp):
        name = "picky"
        flags = PartFlags(static_cache=False, packing=False)

    model = build("llama-gqa")
    cache = StaticCache(config=model.config, max_cache_len=20)
    with pytest.raises(UsageError, match="'picky' cannot run on a static cache"):
        run(model, Picky(), input_ids=ids, past_key_values=cache)
    ready = torch.ones(BATCH, 1, ROWS, ROWS, dtype=torch.bool).tril()
    with pytest.raises(UsageError, match="'picky' cannot run on packed samples"):
        run(model, Picky(), input_ids=ids, attention_mask=ready)
    assert run(model, Picky(), input_ids=ids).isfinite().all()
