"""Rows that compute in some heads only: the same numbers as masking, and less work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    FfnChannels,
    Inject,
    LayerPlan,
    MechanismStack,
    NoOp,
    ReadyKV,
    RowHeads,
    ScoreRequest,
    SequenceState,
    merge_plans,
    project_kv,
    run_decoder,
)
from vistoken.models.plan_cost import count_plans, prompt_map

from .mechanisms import BATCH, ROWS, Tell, positions_of, run

Build = Callable[..., PreTrainedModel]
NAMES = ["llama-gqa", "llama-mha", "mistral-sliding", "qwen2-gqa", "qwen3-gqa"]
FIRST = torch.zeros(BATCH, ROWS, dtype=torch.bool)
FIRST[:, 5:7] = True
FIRST[1, 7:9] = True  # ragged
SECOND = torch.zeros(BATCH, ROWS, dtype=torch.bool)
SECOND[2, 8:10] = True
ONE_HEAD, TWO_HEADS = torch.tensor([0, 0, 1, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
CUTS = (RowHeads(FIRST, ONE_HEAD), RowHeads(SECOND, TWO_HEADS))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def masked(*cuts: RowHeads) -> LayerPlan:
    """The same by masks: heads of those rows give 0, and other rows do not see their keys."""
    keep = torch.ones(BATCH, 4, ROWS, dtype=torch.bool)
    mask = torch.ones(BATCH, 4, ROWS, ROWS, dtype=torch.bool)
    for cut in cuts:
        keep &= cut.heads[None, :, None] | ~cut.rows[:, None]
        hidden = ~cut.rows[:, :, None] & cut.rows[:, None, :]
        mask &= cut.heads[None, :, None, None] | ~hidden[:, None]
    return LayerPlan(head_out_keep=keep.float(), mask=mask)


def cutting(*cuts: RowHeads, **fields: Any) -> LayerPlan:
    return LayerPlan(mask=masked(*cuts).mask, row_heads=cuts, **fields)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_masked_heads(
    name: str, attention: str, build: Build, ids: Tensor, left: Tensor
) -> None:
    model = build(name, attention)
    call = {"input_ids": ids, "attention_mask": left, "position_ids": positions_of(left)}
    expected = run(model, Tell(masked(*CUTS)), **call)
    actual = run(model, Tell(cutting(*CUTS)), **call)
    close(actual[left.bool()], expected[left.bool()])
    stock = run(model, NoOp(), **call)
    assert not torch.allclose(actual[left.bool()], stock[left.bool()], atol=1e-2)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-gqa"])
def test_beside_query_rows_and_channels(name: str, build: Build, ids: Tensor) -> None:
    model = build(name)
    others: dict[str, Any] = {
        "query_rows": torch.arange(ROWS)[None].expand(BATCH, -1) % 3 != 0,
        "ffn_channels": (FfnChannels(FIRST, 12),),
    }
    expected = run(model, Tell(replace(masked(*CUTS), **others)), input_ids=ids)
    close(run(model, Tell(cutting(*CUTS, **others)), input_ids=ids), expected)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-gqa"])
def test_beside_injected_rows(name: str, build: Build, ids: Tensor) -> None:
    """Rows of another mechanism may be injected, as content or as ready keys."""
    model = build(name)
    rows = torch.randn(int(FIRST.sum()), 32, generator=torch.Generator().manual_seed(1))
    cut = RowHeads(SECOND, TWO_HEADS)

    def sources(number: int) -> Tensor:
        return rows

    class Ready(BaseMechanism):
        name = "ready"

        def __init__(self, source: Any) -> None:
            self.source = source

        def plan(self, layer: int, state: SequenceState) -> LayerPlan:
            source = self.source(layer)
            return LayerPlan(query_rows=~FIRST, inject=(Inject(FIRST, source),))

    def keys(layer: int) -> ReadyKV:
        return project_kv(model.model, layer, rows)

    for source in (keys, lambda layer: sources):
        expected = run(model, Tell(masked(cut)), Ready(source), input_ids=ids)
        close(run(model, Tell(cutting(cut)), Ready(source), input_ids=ids), expected)


def test_gradients_equal_masked_heads(build: Build, ids: Tensor) -> None:
    gradients = []
    for plan in (masked(*CUTS), cutting(*CUTS)):
        model = build("qwen3-gqa").train()
        run(model, Tell(plan), input_ids=ids).square().mean().backward()
        gradients.append([weight.grad for weight in model.model.layers.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        close(actual, expected, 1e-4)


@pytest.mark.parametrize("variant", ["plain", "dora"])
def test_adapters(variant: str, build: Build, ids: Tensor) -> None:
    """LoRA acts in the heads that are left; what is no plain pair of matrices is refused."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=targets, init_lora_weights=False, use_dora=variant == "dora"
    )
    wrapped = get_peft_model(build("llama-gqa"), config)
    inner: Any = wrapped.base_model.model
    if variant == "dora":
        with pytest.raises(UsageError, match="layer 0 carries the adapter 'default'"):
            run(inner, Tell(cutting(*CUTS)), input_ids=ids)
        return
    actual = run(inner, Tell(cutting(*CUTS)), input_ids=ids)
    close(actual, run(inner, Tell(masked(*CUTS)), input_ids=ids))
    plain = run(build("llama-gqa"), Tell(cutting(*CUTS)), input_ids=ids)
    assert not torch.allclose(actual, plain, atol=1e-2)


def test_what_is_left_out_is_not_touched(build: Build, ids: Tensor) -> None:
    """Weights of heads that nobody uses may be anything, biases included."""
    model = build("qwen2-gqa")
    everything = torch.ones(1, ROWS, dtype=torch.bool)
    plan = LayerPlan(row_heads=(RowHeads(everything, ONE_HEAD),))
    expected = run(model, Tell(plan), input_ids=ids)
    for layer in model.model.layers:
        attention = layer.self_attn
        for projection, kept in ((attention.q_proj, 2), (attention.k_proj, 1)):
            dead = torch.ones(projection.out_features, dtype=torch.bool)
            dead[8 * kept : 8 * kept + 8] = False
            projection.weight.data[dead] = torch.nan
            projection.bias.data[dead] = torch.nan
        attention.o_proj.weight.data[:, :16] = torch.nan
    close(run(model, Tell(plan), input_ids=ids), expected)


def test_no_head_at_all(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    none = RowHeads(FIRST, torch.zeros(4, dtype=torch.bool))
    close(
        run(model, Tell(cutting(none)), input_ids=ids),
        run(model, Tell(masked(none)), input_ids=ids),
    )


class Cut(BaseMechanism):
    """Cuts heads of visual rows; by slices, or by masks."""

    name = "cut"

    def __init__(self, heads: list[int], slices: bool = True) -> None:
        self.heads, self.slices = torch.tensor(heads).bool(), slices

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        rows, seen = state.visual, state.keys().visual
        if layer == 0 or not bool(seen.any()):
            return STOCK_LAYER
        hidden = ~rows[:, :, None] & seen[:, None, :]
        mask = self.heads[None, :, None, None] | ~hidden[:, None]
        if not bool(rows.any()):
            return LayerPlan(mask=mask)
        if self.slices:
            return LayerPlan(mask=mask, row_heads=(RowHeads(rows, self.heads),))
        keep = self.heads[None, :, None] | ~rows[:, None]
        return LayerPlan(mask=mask, head_out_keep=keep.float())


def table(*media: int) -> Tensor:
    """Two texts of seven rows in all around one medium of each size."""
    maps = [TOKEN.make(size, kind=TokenKind.VISUAL) for size in media]
    return prompt_map(maps, 3, 4)


@pytest.mark.parametrize("heads", [[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["llama-gqa", "llama-mha"])
def test_counts_equal_what_hooks_see(
    name: str, device: str, heads: list[int], build: Build
) -> None:
    model: Any = build(name, "eager").model.to(device)
    rows, tokens = 16, table(5, 4)
    stack = MechanismStack([Cut(heads)])
    counted = count_plans(model, stack, tokens)
    dense = count_plans(model, MechanismStack(), tokens)
    with torch.no_grad(), FlopCounterMode(display=False) as prefill:
        run_decoder(
            model,
            stack=stack,
            inputs_embeds=torch.zeros(1, rows, 32, device=device),
            token_map=tokens,
            position_ids=torch.arange(rows)[None],
            attention_mask=torch.ones(1, rows, dtype=torch.int64),
            use_cache=False,
        )
    assert counted.prefill.flops == prefill.get_total_flops()
    # by hand: nine visual rows in two of three layers leave q, o and whole key/value heads out
    shared = 2 if name == "llama-gqa" else 4
    read = len({head // (4 // shared) for head, on in enumerate(heads) if on})
    saved = 2 * 9 * 2 * 2 * 32 * 8 * ((4 - sum(heads)) + (shared - read))
    assert dense.prefill.flops - counted.prefill.flops == saved
    assert counted.decode.flops == dense.decode.flops


@pytest.mark.parametrize("name", ["llama-gqa", "llama-mha", "qwen3-gqa"])
def test_prefill_and_decoding_in_a_batch(name: str, build: Build) -> None:
    """One prompt with two media, one with one, one without: slices and masks agree."""
    model = build(name)
    tables = [table(5, 4), table(9), TOKEN.make(16)[None]]
    tokens = torch.cat(tables)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (3, 19), generator=generator)
    outputs = []
    for slices in (True, False):
        stack = MechanismStack([Cut([0, 0, 0, 1], slices)])
        call: dict[str, Any] = {"stack": stack, "use_cache": True}
        with torch.no_grad():
            out = run_decoder(model.model, input_ids=ids[:, :16], token_map=tokens, **call)
            steps = [out.last_hidden_state]
            for number in range(16, 19):
                step = run_decoder(
                    model.model,
                    input_ids=ids[:, number : number + 1],
                    past_key_values=out.past_key_values,
                    **call,
                )
                steps.append(step.last_hidden_state)
        outputs.append(torch.cat(steps, dim=1))
    close(outputs[0], outputs[1])


def test_merging() -> None:
    cuts = [LayerPlan(row_heads=(cut,)) for cut in CUTS]
    assert merge_plans(cuts).row_heads == CUTS
    assert not cuts[0].is_trivial
    with pytest.raises(UsageError, match="row_heads cut the heads of the same rows"):
        merge_plans([cuts[0], cuts[0]])


def test_refusals(build: Build, ids: Tensor) -> None:
    class Packed(nn.Linear):
        """Stands for a layer whose weight is no plain matrix."""

    scores = {
        "rows": ScoreRequest("a/rows", FIRST, torch.ones(1, ROWS, dtype=torch.bool)),
        "cols": ScoreRequest("a/cols", ~FIRST & ~SECOND, FIRST, kind="logits"),
    }
    twice = (CUTS[0], CUTS[0])
    wrong: dict[str, LayerPlan] = {
        "same rows in layer 0": LayerPlan(row_heads=twice),
        r"heads \(3,\)": LayerPlan(row_heads=(RowHeads(FIRST, ONE_HEAD[:3]),)),
        r"rows \(3, 10\)": LayerPlan(row_heads=(RowHeads(FIRST[:, 1:], ONE_HEAD),)),
        "int64": LayerPlan(row_heads=(RowHeads(FIRST, ONE_HEAD.long()),)),
        "'a/rows' names rows": cutting(*CUTS, need_scores=(scores["rows"],)),
        "'a/cols' names rows": cutting(*CUTS, need_scores=(scores["cols"],)),
    }
    model = build("llama-gqa")
    for message, plan in wrong.items():
        with pytest.raises(UsageError, match=message):
            run(model, Tell(plan), input_ids=ids)
    attention = model.model.layers[0].self_attn
    stock = attention.v_proj
    attention.v_proj = nn.Linear(32, 8)
    with pytest.raises(UsageError, match="not made of heads of 8"):
        run(model, Tell(cutting(*CUTS)), input_ids=ids)
    attention.v_proj = stock
    attention.q_proj = Packed(32, 32)
    with pytest.raises(UsageError, match=r"attention of layer 0 consists of Packed.*quantization"):
        run(model, Tell(cutting(*CUTS)), input_ids=ids)
