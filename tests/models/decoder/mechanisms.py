"""Small mechanisms that tests put into the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.models.decoder import (
    LayerPlan,
    MechanismStack,
    NoOp,
    SequenceState,
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
