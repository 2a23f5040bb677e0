"""Calls on the mechanisms' cache equal one call without any: pieces, steps, generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    BaseMechanism,
    LayerPlan,
    MechanismStack,
    SequenceState,
    SparseCache,
    refuse_split_media,
    run_decoder,
)

from .mechanisms import (
    ROWS,
    DropThird,
    KeyBias,
    LocalBlock,
    MaskThird,
    Trivial,
    WriteGate,
    in_pieces,
    positions_of,
    run,
)

Build = Callable[..., PreTrainedModel]
Loop = Callable[..., PreTrainedModel]
LAYERS = 3
MECHANISMS: dict[str, Callable[[], BaseMechanism]] = {
    "drop": DropThird,
    "drop-first-layer": lambda: DropThird(0),
    "drop-ragged": lambda: DropThird(1, by_row=True),
    "mask": MaskThird,
    "key-bias": KeyBias,
}
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sampled": {**GREEDY, "do_sample": True, "temperature": 1.3, "top_k": 20},
    "beam": {**GREEDY, "num_beams": 3},
}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["llama-gqa", "mistral-sliding", "qwen3-mha"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_full_layers_equal_the_stock_cache(
    name: str, attention: str, build: Build, ids: Tensor
) -> None:
    """No mask means causal to sdpa and everything to eager attention."""
    model = build(name, attention)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    cache: Any = None
    for start, end in ((0, 6), (6, 9), (9, 10), (10, 11)):
        output = model.model(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions_of(mask)[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        expected = output.last_hidden_state[:, -1]
    actual, ours = in_pieces(model, Trivial(), ids, mask, [6, 3, 1, 1])
    close(actual[:, -1], expected)
    assert ours.get_seq_length() == ROWS
    if "sliding" not in name:
        for mine, stock in zip(ours.layers, cache.layers, strict=True):
            close(mine.keys[0], stock.keys[0])
            assert mine.get_mask_sizes(2) == stock.get_mask_sizes(2)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_chunks_and_steps_equal_the_whole(
    mechanism: str, name: str, build: Build, ids: Tensor, left: Tensor
) -> None:
    """Also against a call without any cache, and each row of the batch alone."""
    model, make = build(name), MECHANISMS[mechanism]
    call = {"input_ids": ids, "attention_mask": left, "position_ids": positions_of(left)}
    expected = run(model, make(), use_cache=False, **call)[:, -1]
    for sizes in ([11], [4, 4, 3], [10, 1], [6, 3, 1, 1]):
        close(in_pieces(model, make(), ids, left, sizes)[0][:, -1], expected)
    if mechanism == "drop-ragged":
        return  # its choice depends on the row's place in the batch
    first = left[:1]
    close(in_pieces(model, make(), ids[:1], first, [10, 1])[0][:, -1], expected[:1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 2])
def test_dropping_ragged_rows_equals_masking(
    name: str, attention: str, layer: int, build: Build, ids: Tensor, padding: Tensor
) -> None:
    model = build(name, attention)
    drop, mask = DropThird(layer, by_row=True), MaskThird(layer, by_row=True)
    call = {"input_ids": ids, "attention_mask": padding, "use_cache": False}
    masked = run(model, mask, **call)
    output = run_decoder(model.model, stack=MechanismStack([drop]), **call)
    rows = output.rows
    assert output.last_hidden_state.shape[1] == rows.shape[1] < ROWS
    places = torch.arange(ROWS).expand_as(ids)
    keep = drop.kept(places) & padding.bool()
    for number in range(len(ids)):
        kept = rows[number][rows[number] >= 0]
        assert torch.equal(kept, places[number][keep[number]])
        survivors = output.last_hidden_state[number, rows.shape[1] - len(kept) :]
        close(survivors, masked[number, kept])


def test_rows_are_told_where_only_one_sequence_drops(build: Build, ids: Tensor) -> None:
    """The number of rows stays, but those of one sequence have moved."""

    class OnlySecond(DropThird):
        def kept(self, order: Tensor) -> Tensor:
            keep = super().kept(order)
            keep[[0, 2]] = True
            return keep

    model, mechanism = build("llama-gqa"), OnlySecond(1)
    stack = MechanismStack([mechanism])
    output = run_decoder(model.model, stack=stack, input_ids=ids, use_cache=False)
    assert output.last_hidden_state.shape[1] == ROWS
    kept = mechanism.kept(torch.arange(ROWS).expand(3, -1).clone())[1]
    filling = [-1] * int((~kept).sum())
    assert output.rows[1].tolist() == filling + torch.nonzero(kept).flatten().tolist()
    assert output.rows[0].tolist() == list(range(ROWS))


@pytest.mark.parametrize("recomposed", [False, True])
def test_write_gate(recomposed: bool, build: Build, ids: Tensor, left: Tensor) -> None:
    """The stock layer hands its cache no flags: the gate lies on the layer's cache instead."""

    class Gate(WriteGate):
        def plan(self, layer: int, state: SequenceState) -> LayerPlan:
            plan = super().plan(layer, state)
            if not recomposed:
                return plan
            return LayerPlan(cache_write=plan.cache_write, head_out_keep=torch.ones(1, 1, 1))

    class Unseen(BaseMechanism):
        """What the gate means: later calls do not see what was not written."""

        name = "unseen"

        def plan(self, layer: int, state: SequenceState) -> LayerPlan:
            if layer < 1:
                return LayerPlan()
            order = state.keys().order
            piece = torch.bucketize(torch.arange(ROWS), torch.tensor([5, 8, 9, 10]))
            same = piece[:, None] == piece[None]
            return LayerPlan(mask=(same[None] | gate.written(order)[:, None, :])[:, None])

    gate, model, sizes = Gate(), build("llama-gqa"), [6, 3, 1, 1]
    actual, cache = in_pieces(model, gate, ids, left, sizes)
    call = {"input_ids": ids, "attention_mask": left, "position_ids": positions_of(left)}
    expected = run(model, Unseen(), use_cache=False, **call)
    close(actual, expected[:, [5, 8, 9, 10]])
    written = gate.written(torch.arange(ROWS).expand(3, -1))
    assert cache.sparse_layers[0].stored == ROWS
    for layer in cache.sparse_layers[1:]:
        assert layer.lengths.tolist() == written.sum(1).tolist()
        assert layer.keys.shape[2] == int(written.sum(1).max())


def test_nothing_written_at_all(build: Build, ids: Tensor) -> None:
    class Never(WriteGate):
        def written(self, order: Tensor) -> Tensor:
            return torch.zeros_like(order, dtype=torch.bool)

    ones = torch.ones_like(ids)
    outputs, cache = in_pieces(build("llama-gqa"), Never(), ids, ones, [6, 4, 1])
    assert [layer.stored for layer in cache.sparse_layers] == [ROWS, 0, 0]
    assert outputs.isfinite().all()


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("mechanism", ["drop", "key-bias", "mask"])
def test_generate_with_and_without_cache(
    mechanism: str, sampling: str, build: Build, loop: Loop, ids: Tensor, left: Tensor
) -> None:
    looped = loop(build("qwen2-gqa"), MECHANISMS[mechanism]())
    tokens = []
    for cache in (SparseCache(LAYERS), None):
        torch.manual_seed(11)
        options = {"past_key_values": cache} if cache is not None else {"use_cache": False}
        tokens.append(looped.generate(ids, attention_mask=left, **options, **SAMPLING[sampling]))
    assert torch.equal(*tokens)


def test_generate_in_chunks(build: Build, loop: Loop, ids: Tensor, left: Tensor) -> None:
    looped = loop(build("llama-gqa"), DropThird())
    answers = [
        looped.generate(
            ids,
            attention_mask=left,
            past_key_values=SparseCache(LAYERS),
            prefill_chunk_size=size,
            **GREEDY,
        )
        for size in (None, 4)
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_wider_attention(attention: str, build: Build, ids: Tensor, padding: Tensor) -> None:
    model = build("llama-gqa", attention)
    allowed = torch.ones(ROWS, ROWS, dtype=torch.bool).tril()
    allowed[3:7, 3:7] = True
    ready = allowed & padding.bool()[:, None, None]
    expected = build("llama-gqa").model(input_ids=ids, attention_mask=ready).last_hidden_state
    call = {"input_ids": ids, "attention_mask": padding}
    keep = padding.bool()
    for use_cache in (False, True):
        actual = run(model, LocalBlock(), use_cache=use_cache, **call)
        close(actual[keep], expected[keep])


def test_wider_attention_stays_inside_a_packed_sample(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    sample = torch.tensor([0] * 5 + [1] * 6)
    causal = (sample[:, None] == sample[None]).tril()
    inside = torch.zeros(ROWS, dtype=torch.bool)
    inside[3:7] = True
    wider = causal | (inside[:, None] & inside[None] & (sample[:, None] == sample[None]))
    expected = model.model(input_ids=ids, attention_mask=wider[None, None]).last_hidden_state
    ready = causal[None, None]
    actual = run(model, LocalBlock(), input_ids=ids, attention_mask=ready, use_cache=False)
    close(actual, expected)


def test_a_piece_that_opens_inside_a_medium(build: Build, ids: Tensor) -> None:
    class Whole(BaseMechanism):
        name = "whole"

        def begin(self, state: SequenceState, cache: Any) -> SequenceState:
            refuse_split_media(state, self.name)
            return state

    model = build("llama-gqa")
    table = TOKEN.make(ROWS)[None].repeat(3, 1, 1)
    table[:, 2:5] = TOKEN.make(3, kind=TokenKind.VISUAL, media=0)
    stack = MechanismStack([Whole()])
    for edge in (1, 2, 5, 6, 3, 4):
        cache = SparseCache(LAYERS)
        call = {"past_key_values": cache, "use_cache": True, "stack": stack}
        run_decoder(model.model, input_ids=ids[:, :edge], token_map=table[:, :edge], **call)
        rest = {"input_ids": ids[:, edge:], "token_map": table[:, edge:]}
        if edge in (3, 4):
            with pytest.raises(UsageError, match="'whole' needs every medium in one call"):
                run_decoder(model.model, **rest, **call)
        else:
            run_decoder(model.model, **rest, **call)
