"""The layer put together from its modules equals the stock layer, and leaves real work out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.models.decoder import (
    FfnChannels,
    Inject,
    LayerPlan,
    MechanismStack,
    ReadyKV,
    Rotary,
    project_kv,
    run_decoder,
)

from .mechanisms import BATCH, HEADS, ROWS, Tell, random_mask, run

Build = Callable[..., PreTrainedModel]
EVERYTHING = torch.ones(BATCH, ROWS, dtype=torch.bool)
# a keep of one changes nothing but cannot be told to the stock layer
TRIVIAL = LayerPlan(head_out_keep=torch.ones(1, 1, 1))
NEUTRAL: dict[str, LayerPlan] = {
    "out": TRIVIAL,
    "values": LayerPlan(head_value_keep=torch.ones(1, 1, 1)),
    "queries": LayerPlan(query_rows=EVERYTHING),
    "ffn": LayerPlan(ffn_rows=EVERYTHING),
    "channels": LayerPlan(ffn_channels=(FfnChannels(EVERYTHING, 48),)),
    "mask": LayerPlan(mask=torch.ones(1, 1, 1, 1, dtype=torch.bool), ffn_rows=EVERYTHING),
}
HALF = torch.zeros(BATCH, ROWS, dtype=torch.bool)
HALF[:, ::2] = True
HALF[1, 4:] = True  # ragged


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trivial_plan_equals_stock(
    family: str, attention: str, build: Build, ids: Tensor, padding: Tensor
) -> None:
    model = build(family, attention)
    call = {"input_ids": ids, "attention_mask": padding, "use_cache": True}
    stack = MechanismStack([Tell(TRIVIAL)])
    expected = model.model(**call)
    actual = run_decoder(model.model, stack=stack, **call)
    keep = padding.bool()
    close(actual.last_hidden_state[keep], expected.last_hidden_state[keep])
    caches = zip(actual.past_key_values.layers, expected.past_key_values.layers, strict=True)
    for ours, stock in caches:
        for mine, theirs in ((ours.keys, stock.keys), (ours.values, stock.values)):
            held = keep[:, -mine.shape[2] :]  # a sliding window holds the last rows
            close(mine.transpose(1, 2)[held], theirs.transpose(1, 2)[held])


@pytest.mark.parametrize("neutral", NEUTRAL)
@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-sliding"])
def test_every_field_at_its_neutral_setting(
    neutral: str, name: str, build: Build, ids: Tensor, padding: Tensor
) -> None:
    model = build(name)
    expected = model.model(input_ids=ids, attention_mask=padding).last_hidden_state
    actual = run(model, Tell(NEUTRAL[neutral]), input_ids=ids, attention_mask=padding)
    close(actual[padding.bool()], expected[padding.bool()])


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-sliding", "qwen2-mha", "qwen3-gqa"])
def test_gradients_equal_stock(name: str, build: Build, ids: Tensor, padding: Tensor) -> None:
    gradients = []
    for mechanism in (None, Tell(TRIVIAL)):
        model = build(name).train()
        call = {"input_ids": ids, "attention_mask": padding}
        hidden = (
            model.model(**call).last_hidden_state
            if mechanism is None
            else run(model, mechanism, **call)
        )
        hidden[padding.bool()].square().mean().backward()
        gradients.append([weight.grad for weight in model.model.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        close(actual, expected, 1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing(build: Build, ids: Tensor, reentrant: bool) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = build("qwen3-gqa").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
            model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
        run(model, Tell(TRIVIAL), input_ids=ids, use_cache=True).square().mean().backward()
        gradients.append([weight.grad for weight in model.model.layers.parameters()])
    assert len(calls) == 2, "the layer is run again in the backward pass"
    for expected, actual in zip(*gradients, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_states_and_attentions_are_recorded(
    attention: str, build: Build, ids: Tensor
) -> None:
    """Hooks on the stock layer never fire here: without a capture of ours both were empty."""
    model = build("llama-gqa", attention)
    wanted = {"input_ids": ids, "output_hidden_states": True, "output_attentions": True}
    expected = model.model(**wanted)
    for start in (0, 1):  # all layers put together, and stock ones in between
        stack = MechanismStack([Tell(TRIVIAL, start=start)])
        actual = run_decoder(model.model, stack=stack, **wanted)
        assert len(actual.hidden_states) == len(expected.hidden_states)
        for mine, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
            close(mine, theirs, 1e-5)
        assert len(actual.attentions) == len(expected.attentions)
        for mine, theirs in zip(actual.attentions, expected.attentions, strict=True):
            close(mine, theirs, 1e-5)


def reference(model: PreTrainedModel, ids: Tensor, queries: Tensor, ffn: Tensor) -> Tensor:
    """All rows worked out by the stock modules; what is not wanted is thrown away."""
    text: Any = model.model
    hidden = text.embed_tokens(ids)
    rotary = text.rotary_emb(hidden, torch.arange(ROWS)[None])
    causal = torch.ones(ROWS, ROWS, dtype=torch.bool).tril()[None, None]
    for layer in text.layers:
        change, _ = layer.self_attn(
            layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=causal
        )
        hidden = torch.where(queries[..., None], hidden + change, hidden)
        changed = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        hidden = torch.where(ffn[..., None], changed, hidden)
    return text.norm(hidden)


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-mha", "qwen2-gqa", "qwen3-mha"])
def test_query_and_ffn_rows(name: str, build: Build, ids: Tensor) -> None:
    model = build(name)
    other = HALF.roll(1, dims=1)
    close(
        run(model, Tell(LayerPlan(query_rows=HALF)), input_ids=ids),
        reference(model, ids, HALF, HALF),
        1e-5,
    )
    close(
        run(model, Tell(LayerPlan(query_rows=HALF, ffn_rows=other)), input_ids=ids),
        reference(model, ids, HALF, other),
        1e-5,
    )


def test_rows_left_out_are_not_worked_out(build: Build, ids: Tensor) -> None:
    """Savings are real: the projections see the chosen rows only."""
    model = build("llama-gqa")
    seen: dict[str, int] = {}
    layer = model.model.layers[1]
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp"):
        layer.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0][..., 0].numel())
        )
    ffn = HALF.clone()
    ffn[:, 2:] = False
    run(model, Tell(LayerPlan(query_rows=HALF, ffn_rows=ffn)), input_ids=ids)
    longest = int(HALF.sum(1).max())
    assert seen == {
        "self_attn.q_proj": BATCH * longest,
        "self_attn.k_proj": BATCH * ROWS,
        "self_attn.o_proj": BATCH * longest,
        "mlp": int(ffn.sum()),
    }


def test_no_query_row_at_all(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    nothing = torch.zeros_like(EVERYTHING)
    actual = run(model, Tell(LayerPlan(query_rows=nothing)), input_ids=ids, use_cache=True)
    assert torch.equal(actual, model.model.norm(model.model.embed_tokens(ids)))


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-gqa"])
@pytest.mark.parametrize("ready", [False, True])
def test_injected_rows_replace_keys_and_values(
    name: str, ready: bool, build: Build, ids: Tensor
) -> None:
    """Equal to a causal decoder whose rows are overwritten before every layer."""
    model = build(name)
    text: Any = model.model
    generator = torch.Generator().manual_seed(1)
    slots = ~HALF
    rows = [torch.randn(int(slots.sum()), 32, generator=generator) for _ in range(len(text.layers))]
    hidden = text.embed_tokens(ids)
    for layer, content in zip(text.layers, rows, strict=True):
        hidden = hidden.masked_scatter(slots[..., None], content)
        rotary = text.rotary_emb(hidden, torch.arange(ROWS)[None])
        hidden = layer(hidden, position_embeddings=rotary, attention_mask=None)
    expected = text.norm(hidden)

    class InjectAll(Tell):
        def plan(self, layer: int, state: Any) -> LayerPlan:
            source: Any = rows.__getitem__
            if ready:
                source = project_kv(model.model, layer, rows[layer])
            return LayerPlan(query_rows=HALF, inject=(Inject(slots, source),))

    actual = run(model, InjectAll(LayerPlan()), input_ids=ids)
    close(actual[HALF], expected[HALF], 1e-5)


def test_ready_keys_skip_the_projections(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    seen: list[int] = []
    slots = ~HALF
    ready = project_kv(model.model, 0, torch.randn(int(slots.sum()), 32))
    model.model.layers[1].self_attn.k_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0][..., 0].numel())
    )
    plan = LayerPlan(query_rows=HALF, inject=(Inject(slots, ready),))
    run(model, Tell(plan), input_ids=ids)
    assert seen == [int(HALF.sum())]


@pytest.mark.parametrize("name", ["llama-gqa", "llama-mha", "qwen3-gqa"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_head_keeps(name: str, attention: str, build: Build, ids: Tensor) -> None:
    """Values times their factor == probabilities times it; outputs times theirs."""
    model = build(name, attention)
    generator = torch.Generator().manual_seed(5)
    values = torch.rand(BATCH, HEADS, ROWS, generator=generator)
    outputs = torch.rand(1, HEADS, ROWS, generator=generator)
    text: Any = model.model
    hidden = text.embed_tokens(ids)
    rotary = text.rotary_emb(hidden, torch.arange(ROWS)[None])
    lowest = torch.finfo(torch.float32).min
    causal = torch.full((ROWS, ROWS), lowest).triu(1)[None, None]
    model.config._attn_implementation = "eager"
    for layer in text.layers:
        attn: Any = layer.self_attn
        normed = layer.input_layernorm(hidden)
        _, probs = attn(normed, position_embeddings=rotary, attention_mask=causal)
        value = attn.v_proj(normed).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        value = value.repeat_interleave(HEADS // value.shape[1], dim=1)
        mixed = (probs * values[:, :, None]) @ value * outputs[..., None]
        hidden = hidden + attn.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    expected = text.norm(hidden)
    model.config._attn_implementation = attention
    plan = LayerPlan(head_value_keep=values, head_out_keep=outputs)
    close(run(model, Tell(plan), input_ids=ids), expected, 1e-5)


def test_shared_heads_are_given_out_only_where_factors_differ(build: Build, ids: Tensor) -> None:
    from vistoken.models.decoder.heads import scale_values

    keys, values = torch.randn(2, 1, 2, 5, 8).unbind(0)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0])[None, :, None]
    mixed = torch.tensor([0.0, 1.0, 1.0, 1.0])[None, :, None]
    assert scale_values(keys, values, whole, 4)[1].shape[1] == 2
    assert scale_values(keys, values, mixed, 4)[1].shape[1] == 4


@pytest.mark.parametrize("channels", [1, 12, 48])
def test_ffn_channels_equal_zeroed_channels(channels: int, build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    text: Any = model.model
    hidden = text.embed_tokens(ids)
    rotary = text.rotary_emb(hidden, torch.arange(ROWS)[None])
    for layer in text.layers:
        change, _ = layer.self_attn(
            layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=None
        )
        hidden = hidden + change
        normed = layer.post_attention_layernorm(hidden)
        inner = layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)
        cut = inner.clone()
        cut[..., channels:] = 0
        hidden = hidden + layer.mlp.down_proj(torch.where(HALF[..., None], cut, inner))
    plan = LayerPlan(ffn_channels=(FfnChannels(HALF, channels),))
    close(run(model, Tell(plan), input_ids=ids), text.norm(hidden), 1e-5)


def test_rotary_of_a_plan(build: Build, ids: Tensor) -> None:
    """One pair replaces the positions; two pairs add their scores up."""
    model = build("llama-gqa")
    positions = torch.randint(0, 30, (BATCH, ROWS), generator=torch.Generator().manual_seed(2))
    # a 2-D mask: positions without order would be taken for packed samples
    ones = torch.ones_like(ids)
    moved = model.model(input_ids=ids, position_ids=positions, attention_mask=ones)
    expected = moved.last_hidden_state
    table = model.model.rotary_emb(torch.zeros(1), positions)
    one = LayerPlan(position_embeddings=Rotary(((table, table),)))
    close(run(model, Tell(one), input_ids=ids), expected, 1e-5)
    halves = LayerPlan(position_embeddings=Rotary(((table, table), (table, table)), scale=0.5))
    close(run(model, Tell(halves), input_ids=ids, use_cache=False), expected, 1e-5)


def test_rows_without_any_key_give_nothing(build: Build, ids: Tensor) -> None:
    """A softmax over nothing is an average in eager attention, and not a number elsewhere."""
    mask = random_mask(HEADS)
    mask[:, 1, 3] = False
    outputs = [
        run(build("llama-gqa", attention), Tell(LayerPlan(mask=mask)), input_ids=ids)
        for attention in ("sdpa", "eager")
    ]
    assert outputs[0].isfinite().all()
    close(*outputs, 1e-5)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_backends_that_take_no_ready_mask(attention: str, build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    model.config._attn_implementation = attention
    for plan in (TRIVIAL, LayerPlan(query_rows=HALF)):
        with pytest.raises(UsageError, match=f"{attention}.*inside a layer.*sdpa"):
            run(model, Tell(plan), input_ids=ids)


def test_plans_that_contradict_themselves(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    rows = torch.zeros(int(HALF.sum()), 32)

    def source(layer: int) -> Tensor:
        return rows

    cases = {
        "query rows of layer 0": LayerPlan(inject=(Inject(HALF, source),)),
        "injects 20 rows into layer 0": LayerPlan(
            query_rows=HALF, inject=(Inject(~HALF, lambda layer: torch.zeros(20, 32)),)
        ),
        "injects 2 rows": LayerPlan(
            query_rows=HALF,
            inject=(Inject(~HALF, ReadyKV(torch.zeros(2, 2, 8), torch.zeros(2, 2, 8))),),
        ),
        "49 channels of layer 0, which has 48": LayerPlan(ffn_channels=(FfnChannels(HALF, 49),)),
        "query_rows for layer 0": LayerPlan(query_rows=HALF[:, :4]),
        "head_value_keep": LayerPlan(head_value_keep=torch.ones(1, HEADS, 3)),
        "head_out_keep": LayerPlan(head_out_keep=torch.ones(1, 3, ROWS)),
    }
    for message, plan in cases.items():
        with pytest.raises(UsageError, match=message):
            run(model, Tell(plan), input_ids=ids)
