"""Traps of attention backends, mask builders and caches: raised, or computed rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vistoken.core.errors import UsageError
from vistoken.core.parts import PartFlags
from vistoken.models.decoder import (
    LayerPlan,
    NoOp,
)

from .mechanisms import BATCH, ROWS, Tell, random_bias, random_mask, run

Build = Callable[..., PreTrainedModel]


@pytest.fixture
def attention_name() -> Iterator[str]:
    """A name for a foreign attention function, forgotten afterwards."""
    name = "foreign"
    AttentionInterface.register(name, sdpa_attention_forward)
    yield name
    AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop(name, None)


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
