"""The mechanisms' cache: what layers store, where tokens are, what can be undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    BaseMechanism,
    LayerPlan,
    MechanismStack,
    NoOp,
    SequenceState,
    SparseCache,
    run_decoder,
)

from .mechanisms import (
    ROWS,
    DropThird,
    KeyBias,
    Trivial,
    WriteGate,
    in_pieces,
    positions_of,
    run,
)

Build = Callable[..., PreTrainedModel]
Loop = Callable[..., PreTrainedModel]
LAYERS = 3


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_stored_keys_are_the_kept_ones(build: Build, ids: Tensor, left: Tensor) -> None:
    mechanism = DropThird(1, by_row=True)
    _, cache = in_pieces(build("llama-gqa"), mechanism, ids, left, [10, 1])
    first, *later = cache.sparse_layers
    assert first.stored == ROWS
    assert cache.get_seq_length() == ROWS
    assert cache.get_seq_length(2) == ROWS
    keep = mechanism.kept(torch.arange(10).expand(3, -1)) & left[:, :10].bool()
    for layer in later:
        assert layer.lengths.tolist() == (keep.sum(1) + 1).tolist()
        assert layer.stored == int(keep.sum(1).max()) + 1
        for row, index in zip(keep, layer.index, strict=True):
            assert index[index >= 0].tolist() == [*torch.nonzero(row).flatten().tolist(), 10]
    assert later[0].index is later[1].index


def test_length_is_what_was_seen(build: Build, ids: Tensor) -> None:
    """Asked of layer 0 as it stores, a stock cache would give later tokens wrong positions."""
    model, mechanism = build("llama-gqa"), DropThird(0)
    _, cache = in_pieces(model, mechanism, ids, torch.ones_like(ids), [ROWS])
    stored = cache.sparse_layers[0].stored
    assert stored < cache.get_seq_length() == ROWS
    stack = MechanismStack([mechanism])
    step = run_decoder(
        model.model, stack=stack, input_ids=ids[:, :1], past_key_values=cache, use_cache=True
    )
    whole = run(model, mechanism, input_ids=torch.cat([ids, ids[:, :1]], 1), use_cache=False)
    close(step.last_hidden_state[:, -1], whole[:, -1])


def test_full_length_padding_mask_would_hide_other_keys(
    build: Build, ids: Tensor, left: Tensor
) -> None:
    """The stock builder indexes a full-length mask by cache index: a dropped layer's is shifted."""
    model, mechanism = build("llama-gqa"), DropThird(1)
    _, cache = in_pieces(model, mechanism, ids[:, :10], left[:, :10], [10])
    wrong = create_causal_mask(
        config=model.config,
        inputs_embeds=torch.zeros(3, 1, 32),
        attention_mask=left,
        past_key_values=cache,
        position_ids=positions_of(left)[:, -1:],
        layer_idx=1,
    )
    index = cache.sparse_layers[1].index
    right = (index >= 0) & left.bool().gather(1, index.clamp(min=0))
    assert wrong.shape[-1] == index.shape[1] + 1
    assert not torch.equal(wrong[:, 0, 0, :-1], right)


def test_batch_operations(build: Build, ids: Tensor, left: Tensor) -> None:
    """Repeating, choosing and reordering sequences go through slots, ledger and counters."""
    model, mechanism = build("llama-gqa"), DropThird(1, by_row=False)
    order = torch.tensor([2, 0, 0])
    _, expected = in_pieces(model, mechanism, ids[order, :10], left[order, :10], [10])
    _, reordered = in_pieces(model, mechanism, ids[:, :10], left[:, :10], [10])
    reordered.reorder_cache(order)
    _, chosen = in_pieces(model, mechanism, ids[:, :10], left[:, :10], [10])
    chosen.batch_select_indices(order)
    _, repeated = in_pieces(model, mechanism, ids[:1, :10], left[:1, :10], [10])
    repeated.batch_repeat_interleave(3)
    for cache in (reordered, chosen):
        assert torch.equal(cache.next_positions, expected.next_positions)
        assert torch.equal(cache.valid, expected.valid)
        for mine, theirs in zip(cache.sparse_layers, expected.sparse_layers, strict=True):
            # slots behind the last stored one hold nothing
            held = theirs.index >= 0
            assert torch.equal(mine.index[:, : held.shape[1]][held], theirs.index[held])
            close(
                mine.keys.transpose(1, 2)[:, : held.shape[1]][held],
                theirs.keys.transpose(1, 2)[held],
            )
    assert repeated.valid.shape[0] == repeated.sparse_layers[2].keys.shape[0] == 3


@pytest.mark.parametrize("mechanism", [Trivial, WriteGate])
def test_crop_counts_tokens_seen(
    mechanism: Callable[[], BaseMechanism], build: Build, ids: Tensor, left: Tensor
) -> None:
    """Layers that stored less than was seen must not lose slots of earlier tokens."""
    model = build("llama-gqa")
    sizes = [7, 1, 1, 1, 1]
    expected, kept = in_pieces(model, mechanism(), ids, left, sizes)
    wrong = ids.clone()
    wrong[:, 8:10] = 5
    _, cache = in_pieces(model, mechanism(), wrong[:, :10], left[:, :10], [7, 1, 1, 1])
    cache.crop(0)
    cache.crop(-2)
    assert cache.get_seq_length() == 8
    stack = MechanismStack([mechanism()])
    for place in (8, 9, 10):
        output = run_decoder(
            model.model,
            stack=stack,
            input_ids=ids[:, place : place + 1],
            attention_mask=left[:, : place + 1],
            past_key_values=cache,
            use_cache=True,
        )
        close(output.last_hidden_state[:, 0], expected[:, place - 6])
    for mine, theirs in zip(cache.sparse_layers, kept.sparse_layers, strict=True):
        assert torch.equal(mine.lengths, theirs.lengths)


def test_what_cannot_be_cropped(build: Build, ids: Tensor, left: Tensor) -> None:
    _, cache = in_pieces(build("llama-gqa"), DropThird(), ids, left, [9, 1, 1])
    cache.crop(-2)
    with pytest.raises(UsageError, match="dropped rows among the first 9"):
        cache.crop(-1)
    with pytest.raises(UsageError, match="seen 9 tokens and cannot remove 10"):
        cache.crop(-10)
    with pytest.raises(UsageError, match="negative"):
        cache.crop(4)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_next_positions_count_valid_rows(build: Build, ids: Tensor) -> None:
    """Padding on the right: the last position plus one is another row's padding."""
    model = build("llama-gqa")
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    _, cache = in_pieces(model, Trivial(), ids, mask, [ROWS])
    assert cache.next_positions.tolist() == [11, 9, 11]
    stack = MechanismStack([Trivial()])
    more = torch.cat([mask, torch.ones(3, 1, dtype=torch.int64)], dim=1)
    output = run_decoder(
        model.model,
        stack=stack,
        input_ids=ids[:, :1],
        attention_mask=more,
        past_key_values=cache,
        use_cache=True,
    )
    single = torch.cat([ids[1:2, :9], ids[1:2, :1]], dim=1)
    close(output.last_hidden_state[1, 0], run(model, NoOp(), input_ids=single)[0, -1])


def test_a_mechanism_counts_positions_itself(build: Build, ids: Tensor) -> None:
    class TwoByTwo(BaseMechanism):
        name = "two-by-two"

        def begin(self, state: SequenceState, cache: Any) -> SequenceState:
            if state.cache is not None and state.valid.shape[1] > 1:
                cache.set_next_positions(torch.full((3,), 20), step=2)
            self.seen.append(state.position_ids)
            return state

    mechanism = TwoByTwo()
    mechanism.seen = []
    in_pieces(build("llama-gqa"), mechanism, ids, torch.ones_like(ids), [9, 1, 1])
    assert [positions[0, -1].item() for positions in mechanism.seen] == [8, 20, 22]


def test_renumbered_rows(build: Build, ids: Tensor) -> None:
    """A restart: rows chosen before the first layer, with new positions."""

    class Restart(BaseMechanism):
        name = "restart"

        def begin(self, state: SequenceState, cache: Any) -> SequenceState:
            from vistoken.models.decoder import drop_rows

            if state.valid.shape[1] == 1:
                return state
            state, _ = drop_rows(state, state.row_order % 2 == 0)
            state.position_ids = torch.arange(state.valid.shape[1]).expand_as(state.valid)
            return state

    model = build("llama-gqa")
    _, cache = in_pieces(model, Restart(), ids, torch.ones_like(ids), [ROWS])
    assert cache.next_positions.tolist() == [6, 6, 6]
    stack = MechanismStack([Restart()])
    step = run_decoder(
        model.model, stack=stack, input_ids=ids[:, :1], past_key_values=cache, use_cache=True
    )
    short = torch.cat([ids[:, ::2], ids[:, :1]], dim=1)
    # default positions count tokens seen; the ledger counts what is left
    close(step.last_hidden_state[:, 0], run(model, NoOp(), input_ids=short)[:, -1])


def test_keys_of_a_step_say_what_is_cached(build: Build, ids: Tensor) -> None:
    class Look(BaseMechanism):
        name = "look"

        def plan(self, layer: int, state: SequenceState) -> LayerPlan:
            self.keys = state.keys()
            return LayerPlan()

    look, model = Look(), build("llama-gqa")
    table = TOKEN.make(ROWS)[None].repeat(3, 1, 1)
    table[:, 2:5] = TOKEN.make(3, kind=TokenKind.VISUAL, media=0)
    cache = SparseCache(LAYERS)
    stack = MechanismStack([look])
    call = {"past_key_values": cache, "use_cache": True, "stack": stack}
    run_decoder(model.model, input_ids=ids, token_map=table, **call)
    run_decoder(model.model, input_ids=ids[:, :1], **call)
    assert look.keys.visual[0].tolist() == [2 <= place < 5 for place in range(ROWS + 1)]
    assert torch.equal(look.keys.position_ids[0], torch.arange(ROWS + 1))


def test_caches_that_do_not_know_what_they_hold(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    filled = DynamicCache(config=model.config)
    model.model(input_ids=ids, past_key_values=filled, use_cache=True)
    call = {"input_ids": ids[:, :1], "use_cache": True}
    for mechanism in (KeyBias(), WriteGate(0)):
        with pytest.raises(UsageError, match="SparseCache"):
            run(model, mechanism, past_key_values=filled, **call)
    with pytest.raises(UsageError, match="SparseCache"):
        run(model, DropThird(), input_ids=ids, past_key_values=DynamicCache(config=model.config))
    _, cache = in_pieces(model, Trivial(), ids, torch.ones_like(ids), [ROWS])
    with pytest.raises(UsageError, match="holds 3 sequences but the call has 2"):
        run(model, Trivial(), input_ids=ids[:2, :1], past_key_values=cache)
    with pytest.raises(RuntimeError, match="belongs to the decoder loop"):
        model.model(input_ids=ids[:, :1], past_key_values=SparseCache(LAYERS), use_cache=True)
