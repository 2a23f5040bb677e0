"""The loop with a no-op mechanism is the stock model (decoder acceptance, item 1)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2Model,
    Phi3Config,
    Phi3Model,
    PreTrainedModel,
    StaticCache,
)

from vistoken.core.errors import UsageError
from vistoken.models.decoder import MechanismStack, NoOp, run_decoder

Build = Callable[..., PreTrainedModel]
Loop = Callable[..., PreTrainedModel]
STACK = MechanismStack([NoOp()])

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "beam": {"do_sample": False, "num_beams": 3},
}


def cache_tensors(cache: DynamicCache) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def equal_all(left: Any, right: Any) -> bool:
    return len(left) == len(right) > 0 and all(map(torch.equal, left, right))


def test_forward_equals_stock(
    family: str, build: Build, loop: Loop, ids: torch.Tensor, padding: torch.Tensor
) -> None:
    stock = build(family)
    inputs = {"attention_mask": padding, "output_hidden_states": True, "use_cache": True}
    labels = ids.masked_fill(padding == 0, -100)
    expected = stock(ids, labels=labels, **inputs)
    actual = loop(stock)(ids, labels=labels, **inputs)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.loss, expected.loss)
    assert equal_all(actual.hidden_states, expected.hidden_states)
    assert equal_all(cache_tensors(actual.past_key_values), cache_tensors(expected.past_key_values))


def test_gradients_equal_stock(
    family: str, build: Build, loop: Loop, ids: torch.Tensor, padding: torch.Tensor
) -> None:
    stock = build(family).train()
    looped = loop(stock)
    labels = ids.masked_fill(padding == 0, -100)
    for model in (stock, looped):
        model(ids, attention_mask=padding, labels=labels).loss.backward()
    expected = {name: weight.grad for name, weight in stock.named_parameters()}
    for name, weight in looped.named_parameters():
        assert weight.grad is not None, name
        assert torch.equal(weight.grad, expected[name]), name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(
    build: Build, loop: Loop, ids: torch.Tensor, reentrant: bool
) -> None:
    stock = build("llama-gqa").train()
    stock(ids, labels=ids).loss.backward()
    checkpointed = build("llama-gqa").train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed.enable_input_require_grads()
    looped = loop(checkpointed)
    calls: list[None] = []
    looped.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
    output = looped(ids, labels=ids, use_cache=True)
    output.loss.backward()
    assert len(calls) == 2, "the layer is run again in the backward pass"
    assert output.past_key_values is None
    for expected, actual in zip(stock.parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_recorded_outputs(
    family: str, attention: str, build: Build, loop: Loop, ids: torch.Tensor, padding: torch.Tensor
) -> None:
    stock = build(family, attention)
    wanted = {"output_attentions": True, "output_hidden_states": True, "attention_mask": padding}
    expected, actual = stock(ids, **wanted), loop(stock)(ids, **wanted)
    assert equal_all(actual.hidden_states, expected.hidden_states)
    if attention == "eager":
        assert equal_all(actual.attentions, expected.attentions)
    else:
        assert actual.attentions == expected.attentions


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("side", ["left", "none"])
def test_generate_equals_stock(
    family: str, sampling: str, side: str, build: Build, loop: Loop, ids: torch.Tensor
) -> None:
    stock = build(family)
    mask = torch.ones_like(ids)
    if side == "left":
        mask[1, :2] = 0
        mask[2, :5] = 0
    tokens = []
    for model in (stock, loop(stock)):
        torch.manual_seed(11)
        options = {"max_new_tokens": 8, "min_new_tokens": 8, **SAMPLING[sampling]}
        tokens.append(model.generate(ids, attention_mask=mask, **options))
    assert torch.equal(*tokens)


def test_generate_on_a_static_cache(
    family: str, build: Build, loop: Loop, ids: torch.Tensor
) -> None:
    stock = build(family)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    options["disable_compile"] = True
    expected = stock.generate(ids, attention_mask=mask, **options)
    assert torch.equal(loop(stock).generate(ids, attention_mask=mask, **options), expected)


def test_batch_equals_singles(
    family: str, build: Build, loop: Loop, ids: torch.Tensor, padding: torch.Tensor
) -> None:
    looped = loop(build(family))
    positions = (padding.cumsum(1) - 1).clamp(min=0)
    batch = looped(ids, attention_mask=padding, position_ids=positions).logits
    for row, keep in enumerate(padding.bool()):
        single = looped(ids[row, keep][None]).logits[0]
        torch.testing.assert_close(batch[row, keep], single, rtol=1e-4, atol=1e-5)


def test_cache_on_equals_off(family: str, build: Build, loop: Loop, ids: torch.Tensor) -> None:
    looped = loop(build(family))
    full = looped(ids, use_cache=False)
    assert full.past_key_values is None
    cache, pieces = None, []
    for chunk in ids.split([6, 3, 1, 1], dim=1):  # a chunk on a filled cache, then single tokens
        output = looped(chunk, past_key_values=cache, use_cache=True)
        cache, _ = output.past_key_values, pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), full.logits, rtol=1e-4, atol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False}
    on, off = (looped.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(on, off)


def test_embeddings_equal_ids(family: str, build: Build, loop: Loop, ids: torch.Tensor) -> None:
    looped = loop(build(family))
    embeddings = looped.get_input_embeddings()(ids)
    assert torch.equal(looped(inputs_embeds=embeddings).logits, looped(ids).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packing_by_a_ready_mask(
    family: str, attention: str, build: Build, loop: Loop, ids: torch.Tensor
) -> None:
    stock = build(family, attention)
    lengths = [7, 4]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    sample = torch.arange(2).repeat_interleave(torch.tensor(lengths))
    allowed = (sample[:, None] == sample[None]).tril()[None, None]
    looped, packed = loop(stock), ids[:1]
    actual = looped(packed, attention_mask=allowed, position_ids=positions).logits
    if attention == "sdpa":
        expected = stock(packed, attention_mask=allowed, position_ids=positions).logits
        assert torch.equal(actual, expected)
    if "sliding" in family:  # a ready mask replaces the window, in the stock model too
        return
    singles = [looped(piece).logits for piece in packed.split(lengths, dim=1)]
    torch.testing.assert_close(actual, torch.cat(singles, 1), rtol=1e-4, atol=1e-5)


def test_packing_by_positions_equals_stock(
    family: str, build: Build, loop: Loop, ids: torch.Tensor
) -> None:
    stock = build(family)
    positions = torch.cat([torch.arange(7), torch.arange(4)])[None]
    call = {"position_ids": positions, "use_cache": False}
    assert torch.equal(loop(stock)(ids, **call).logits, stock(ids, **call).logits)


def test_window_matters(build: Build, loop: Loop, ids: torch.Tensor) -> None:
    changed = ids.clone()
    changed[:, 0] = (ids[:, 0] + 1) % 60 + 3
    looped = loop(build("mistral-sliding", num_hidden_layers=1))
    difference = (looped(ids).logits - looped(changed).logits).abs().amax(-1)
    assert (difference[:, :4] > 0).all()
    assert (difference[:, 4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_kept(build: Build, loop: Loop, ids: torch.Tensor, dtype: torch.dtype) -> None:
    stock = build("qwen3-gqa").to(dtype)
    expected, actual = stock.model(input_ids=ids), loop(stock).model(input_ids=ids)
    assert actual.last_hidden_state.dtype == dtype
    assert torch.equal(actual.last_hidden_state, expected.last_hidden_state)


def test_given_cache_is_extended(build: Build, ids: torch.Tensor) -> None:
    model = build("llama-gqa").model
    cache = DynamicCache(config=model.config)
    output = run_decoder(model, stack=STACK, input_ids=ids, past_key_values=cache, use_cache=True)
    assert output.past_key_values is cache
    assert cache.get_seq_length() == ids.shape[1]


def test_prefill_of_a_longer_static_cache(build: Build, ids: torch.Tensor) -> None:
    model = build("qwen2-gqa").model
    expected = model(ids, use_cache=False).last_hidden_state
    cache = StaticCache(config=model.config, max_cache_len=20)
    output = run_decoder(model, stack=STACK, input_ids=ids, past_key_values=cache, use_cache=True)
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_state_is_not_on_the_module(build: Build, ids: torch.Tensor) -> None:
    model = build("llama-gqa").model
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    run_decoder(model, stack=STACK, input_ids=ids)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def test_calls_in_threads_do_not_mix(build: Build, ids: torch.Tensor) -> None:
    model = build("llama-gqa").model
    rows = list(ids.split(1))

    def call(row: torch.Tensor) -> Any:
        return run_decoder(model, stack=STACK, input_ids=row, output_hidden_states=True)

    expected = [call(row).hidden_states for row in rows]
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = call(rows[number]).hidden_states

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal_all(results[number], expected[number]) for number in range(len(rows)))


@pytest.mark.parametrize(
    ("config_class", "model_class", "own"),
    [
        (Phi3Config, Phi3Model, {}),  # fused query, key and value projection
        (Gemma2Config, Gemma2Model, {"head_dim": 8}),  # norms after attention and MLP
    ],
)
def test_other_families_are_refused(
    config_class: Any, model_class: Any, own: dict[str, Any], ids: torch.Tensor
) -> None:
    config = config_class(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
        **own,
    )
    with pytest.raises(UsageError, match="llama, mistral, qwen2, qwen3"):
        run_decoder(model_class(config), stack=STACK, input_ids=ids)


def test_inputs_are_checked(build: Build, ids: torch.Tensor) -> None:
    model = build("llama-gqa").model
    embeddings = model.get_input_embeddings()(ids)
    with pytest.raises(UsageError, match="either input_ids or inputs_embeds"):
        run_decoder(model, stack=STACK, input_ids=ids, inputs_embeds=embeddings)
    with pytest.raises(UsageError, match="either input_ids or inputs_embeds"):
        run_decoder(model, stack=STACK)
    with pytest.raises(UsageError, match="must agree"):
        run_decoder(
            model, stack=STACK, input_ids=ids, token_map=torch.zeros(3, 10, 22, dtype=torch.int64)
        )
