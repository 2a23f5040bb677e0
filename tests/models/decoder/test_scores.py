"""Attention scores that mechanisms ask for: which, reduced how, never all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.models.decoder import (
    BaseMechanism,
    LayerPlan,
    ScoreRequest,
    SequenceState,
    scores,
)

from .mechanisms import BATCH, HEADS, ROWS, Tell, in_pieces, random_bias, run

Build = Callable[..., PreTrainedModel]
ROWS_ASKED = torch.zeros(BATCH, ROWS, dtype=torch.bool)
ROWS_ASKED[:, 5:8] = True
ROWS_ASKED[1, 9] = True  # ragged
COLS_ASKED = torch.zeros(1, ROWS, dtype=torch.bool)
COLS_ASKED[:, 1:6] = True


class Ask(BaseMechanism):
    """Asks for scores in every layer, and keeps the last answer."""

    name, own_cache = "ask", False

    def __init__(self, **options: Any) -> None:
        self.options, self.answers = options, list[dict[str, Tensor]]()

    def requests(self) -> tuple[ScoreRequest, ...]:
        return (ScoreRequest("ask/scores", ROWS_ASKED, COLS_ASKED, **self.options),)

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        return LayerPlan(need_scores=self.requests())

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        self.answers.append(state.scores)


@pytest.fixture
def probs(build: Build, ids: Tensor, padding: Tensor) -> Tensor:
    """All probabilities (B, H, n, n) of the first layer, as eager attention gives them."""
    model = build("llama-gqa", "eager")
    call = {"input_ids": ids, "attention_mask": padding, "output_attentions": True}
    return model.model(**call).attentions[0]


def rows_of(full: Tensor) -> Tensor:
    """(B, H, r, k) of the asked rows, zeros behind the last and at keys not asked for."""
    longest = int(ROWS_ASKED.sum(1).max())
    answer = full.new_zeros(BATCH, full.shape[1], longest, ROWS)
    for number, rows in enumerate(ROWS_ASKED):
        answer[number, :, : int(rows.sum())] = full[number][:, rows]
    return answer * COLS_ASKED[:, None, None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("over_rows", ["none", "mean", "sum"])
@pytest.mark.parametrize("over_cols", ["none", "mean", "sum"])
@pytest.mark.parametrize("heads", ["all", "mean"])
def test_probabilities(
    attention: str,
    over_rows: Any,
    over_cols: Any,
    heads: Any,
    build: Build,
    ids: Tensor,
    padding: Tensor,
    probs: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a single row at a time
    monkeypatch.setattr(scores, "CHUNK_BYTES", 4 * BATCH * HEADS * ROWS)
    ask = Ask(over_rows=over_rows, over_cols=over_cols, heads=heads)
    model = build("llama-gqa", attention)
    run(model, ask, input_ids=ids, attention_mask=padding)
    expected = rows_of(probs)
    counts = ROWS_ASKED.sum(1)[:, None, None].expand(-1, HEADS, -1)
    if over_cols != "none":
        expected = expected.sum(3) / (1 if over_cols == "sum" else int(COLS_ASKED.sum()))
    if over_rows != "none":
        if over_cols != "none":
            counts = counts[:, :, 0]
        expected = expected.sum(2) / (1 if over_rows == "sum" else counts)
    if heads == "mean":
        expected = expected.mean(1)
    valid = ~((padding == 0) & ROWS_ASKED).any(1)  # of padding rows anything may be said
    answer = ask.answers[0]["ask/scores"]
    assert answer.shape == expected.shape
    torch.testing.assert_close(answer[valid], expected[valid], rtol=1e-4, atol=1e-6)


def test_logits_have_neither_mask_nor_bias(build: Build, ids: Tensor) -> None:
    model = build("qwen3-gqa")
    ask = Ask(kind="logits")
    run(model, Tell(LayerPlan(key_bias=random_bias(1, ROWS))), ask, input_ids=ids)
    plain = Ask(kind="logits")
    run(model, plain, input_ids=ids)
    first = [a.answers[0]["ask/scores"] for a in (ask, plain)]
    torch.testing.assert_close(*first)
    assert (first[0][:, :, 0, 5] != 0).all()
    everything = ScoreRequest(
        "ask/all", torch.ones(1, ROWS).bool(), torch.ones(1, ROWS).bool(), kind="logits"
    )
    ask.requests = lambda: (everything,)
    ask.answers.clear()
    run(model, ask, input_ids=ids)
    answer = ask.answers[0]["ask/all"]
    assert (answer[0, :, 0, 1:] != 0).all(), "keys behind the row have logits too"


def test_probabilities_see_mask_and_bias(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa", "eager")
    bias = random_bias(HEADS, ROWS)
    everything = torch.ones(1, ROWS, dtype=torch.bool)
    ask = Ask()
    ask.requests = lambda: (ScoreRequest("ask/scores", everything, everything),)
    stack_output = run(model, Tell(LayerPlan(key_bias=bias)), ask, input_ids=ids)
    assert stack_output.isfinite().all()
    causal = torch.ones(ROWS, ROWS, dtype=torch.bool).tril()
    full = torch.where(causal, bias, torch.finfo(torch.float32).min)
    expected = model.model(input_ids=ids, attention_mask=full, output_attentions=True).attentions[0]
    torch.testing.assert_close(ask.answers[0]["ask/scores"], expected, rtol=1e-4, atol=1e-6)


def test_scores_of_a_step_cover_the_cache(build: Build, ids: Tensor) -> None:
    class Last(Ask):
        own_cache = True

        def plan(self, layer: int, state: SequenceState) -> LayerPlan:
            keys = state.keys()
            last = torch.zeros_like(state.valid)
            last[:, -1] = True
            request = ScoreRequest("ask/last", last, keys.valid)
            return LayerPlan(need_scores=(request,))

    model, mask = build("llama-gqa"), torch.ones_like(ids)
    whole, steps = Last(), Last()
    in_pieces(model, whole, ids, mask, [ROWS])
    in_pieces(model, steps, ids, mask, [6, 4, 1])
    for one, other in zip(whole.answers[-3:], steps.answers[-3:], strict=True):
        torch.testing.assert_close(other["ask/last"], one["ask/last"], rtol=1e-4, atol=1e-5)
    assert whole.answers[-1]["ask/last"].shape == (BATCH, HEADS, 1, ROWS)


@pytest.mark.parametrize("grad", [False, True])
def test_gradients_flow_where_asked(grad: bool, build: Build, ids: Tensor) -> None:
    model = build("llama-gqa").train()
    ask = Ask(grad=grad, over_rows="sum", over_cols="sum")
    run(model, ask, input_ids=ids)
    answer = ask.answers[0]["ask/scores"]
    assert answer.requires_grad is grad
    if grad:
        answer.sum().backward()
        weight = model.model.layers[0].self_attn.k_proj.weight
        assert weight.grad.abs().sum() > 0


def test_several_requests_on_one_layer(build: Build, ids: Tensor) -> None:
    first, second = Ask(), Ask(kind="logits")
    second.name = "other"
    requests = second.requests()[0]
    second.requests = lambda: (
        ScoreRequest("other/scores", requests.rows, requests.cols, kind="logits"),
    )
    run(build("llama-gqa"), first, second, input_ids=ids)
    assert sorted(first.answers[0]) == ["ask/scores", "other/scores"]
    clash = Ask()
    clash.name = "clash"
    with pytest.raises(UsageError, match="twice under the name 'ask/scores'"):
        run(build("llama-gqa"), first, clash, input_ids=ids)


def test_requests_that_do_not_fit(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    some = torch.zeros(BATCH, ROWS, dtype=torch.bool)
    some[:, :6] = True
    with pytest.raises(UsageError, match="names rows that are no queries"):
        run(model, Tell(LayerPlan(query_rows=some)), Ask(), input_ids=ids)
    for rows, cols, message in (
        (ROWS_ASKED[:, :4], COLS_ASKED, "names 4 rows, the call has 11"),
        (ROWS_ASKED, COLS_ASKED[:, :4], "names 4 keys, the layer has 11"),
    ):
        ask = Ask()
        ask.requests = lambda rows=rows, cols=cols: (ScoreRequest("ask/x", rows, cols),)
        with pytest.raises(UsageError, match=message):
            run(model, ask, input_ids=ids)


def test_rows_asked_among_chosen_queries(build: Build, ids: Tensor) -> None:
    """Places among the query rows differ from places among all rows."""
    model = build("llama-gqa")
    queries = torch.ones(BATCH, ROWS, dtype=torch.bool)
    queries[:, [0, 3]] = False
    ask, plain = Ask(), Ask()
    run(model, Tell(LayerPlan(query_rows=queries)), ask, input_ids=ids)
    run(model, plain, input_ids=ids)
    # the first layer's scores do not depend on which other rows have queries
    torch.testing.assert_close(ask.answers[0]["ask/scores"], plain.answers[0]["ask/scores"])
