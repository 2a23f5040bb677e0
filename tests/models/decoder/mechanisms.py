"""Small mechanisms that tests put into the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    LayerPlan,
    MechanismStack,
    NoOp,
    SequenceState,
    SparseCache,
    drop_rows,
    run_decoder,
)

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


class Trivial(BaseMechanism):
    """Changes nothing, but asks for the mechanisms' own cache."""

    name = "trivial"


class DropThird(BaseMechanism):
    """Stands for token dropping: from a layer on, every third row of a prompt is gone."""

    name = "drop-third"

    def __init__(self, layer: int = 1, by_row: bool = False) -> None:
        self.layer, self.by_row = layer, by_row

    def kept(self, order: Tensor) -> Tensor:
        shift = torch.arange(len(order))[:, None] if self.by_row else 0
        keep = (order + shift) % 3 != 1
        return keep | (order >= ROWS - 1)  # the last row of a prompt and all later ones

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        keep = self.kept(state.row_order)
        if layer != self.layer or bool(keep.all()):
            return state
        return drop_rows(state, keep)[0]


class MaskThird(DropThird):
    """The same rows, hidden instead of dropped."""

    name = "mask-third"

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        return state

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        if layer < self.layer:
            return STOCK_LAYER
        return LayerPlan(mask=self.kept(state.keys().order)[:, None, None])


class KeyBias(BaseMechanism):
    """Stands for soft masks: a bias on keys by what they are, cached ones included."""

    name = "key-bias"

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        bias = -self.strength * (state.keys().order % 4)
        return LayerPlan(key_bias=bias.float()[:, None, None])


class WriteGate(BaseMechanism):
    """Stands for output sparsity: from a layer on, only some keys are stored."""

    name = "write-gate"

    def __init__(self, layer: int = 1, every: int = 3, by_row: bool = True) -> None:
        self.layer, self.every, self.by_row = layer, every, by_row

    def written(self, order: Tensor) -> Tensor:
        shift = torch.arange(len(order))[:, None] if self.by_row else 0
        return (order + shift) % self.every != 1

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        if layer < self.layer:
            return STOCK_LAYER
        return LayerPlan(cache_write=self.written(state.row_order))


class LocalBlock(BaseMechanism):
    """Stands for bidirectional blocks: the rows 3..6 see each other, later ones too."""

    name = "local-block"

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        def inside(order: Tensor) -> Tensor:
            return (order >= 3) & (order <= 6)

        rows, keys = inside(state.row_order), inside(state.keys().order)
        if not bool(rows.any()):
            return STOCK_LAYER
        return LayerPlan(mask_or=(rows[:, :, None] & keys[:, None, :])[:, None])


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


def positions_of(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def in_pieces(
    model: PreTrainedModel, mechanism: BaseMechanism, ids: Tensor, mask: Tensor, sizes: list[int]
) -> tuple[Tensor, SparseCache]:
    """Last hidden states of every piece of a prompt, and the cache behind them."""
    cache = SparseCache(model.config.num_hidden_layers)
    positions, outputs, start = positions_of(mask), [], 0
    for size in sizes:
        end = start + size
        output = run_decoder(
            model.model,
            stack=MechanismStack([mechanism]),
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        outputs.append(output.last_hidden_state[:, -1])
        start = end
    return torch.stack(outputs, 1), cache
