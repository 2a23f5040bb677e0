"""What mechanisms see of the rows, and what dropping rows does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    LayerPlan,
    NoOp,
    SequenceState,
)

from .mechanisms import BATCH, ROWS, Drop, Tell, Watch, run

Build = Callable[..., PreTrainedModel]


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
    mask[1, :2] = 0  # padding of the prompt, which is no row of this call
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
