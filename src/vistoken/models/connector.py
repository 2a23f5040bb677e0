"""The connector: a chain of registered stages under ``multi_modal_projector``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vistoken.core.parts import FEATURES, ConnectorStage, ConnectorState, StageContext


@dataclass(frozen=True)
class ResolvedStage:
    """A connector stage with its config and the context it is built from."""

    name: str
    kind: str
    part: type[ConnectorStage]
    config: Any
    context: StageContext


class Connector(nn.Module):
    """Runs fuse -> project -> (reduce | append)* over all views of a call.

    Weights live under each stage's unique name; a chain of one stage that declares
    ``flat_when_alone`` keeps the stage's own names (Hugging Face Llava's projector).

    Args:
        chain: Resolved stages, in order.
    """

    def __init__(self, chain: list[ResolvedStage]) -> None:
        super().__init__()
        self._names: list[str] = []
        self._alone: list[ConnectorStage] = []  # a list hides the module from registration
        self._project = [resolved.kind for resolved in chain].index("project")
        self._project = [resolved.kind for resolved in chain].index("project")
        stages = [stage.part(stage.config, stage.context) for stage in chain]
        if len(stages) == 1 and stages[0].flat_when_alone:
            self._alone = stages
            for name, child in stages[0].named_children():
                self.add_module(name, child)
        else:
            for resolved, stage in zip(chain, stages, strict=True):
                self.add_module(resolved.name, stage)
                self._names.append(resolved.name)

    @property
    def stages(self) -> list[ConnectorStage]:
        """The stages in order."""
        for stage in self._alone:  # somebody (PEFT, quantisation) may have replaced our modules
            for name, child in self.named_children():
                setattr(stage, name, child)
        return self._alone or [self.get_submodule(name) for name in self._names]  # type: ignore[misc]

    def forward(
        self, state: ConnectorState, prefixes: list[Tensor], *, keep_features: bool = False
    ) -> ConnectorState:
        """Run the chain.

        Args:
            state: Features of every anchor view; tokens and grids still empty.
            prefixes: For each anchor, kept prefix tokens (P, width) of the first tower.
            keep_features: Leave what enters the projection in ``side["encoder_features"]``, for
                each anchor (N, width).
        """
        state.grids = [(maps[0].shape[0], maps[0].shape[1]) for maps in state.features]
        state.tokens = [
            torch.cat([prefix, maps[0].flatten(0, 1)]) if len(prefix) else maps[0].flatten(0, 1)
            for prefix, maps in zip(prefixes, state.features, strict=True)
        ]
        for number, stage in enumerate(self.stages):
            if keep_features and number == self._project:
                state.side = {**state.side, FEATURES: list(state.tokens)}
            state = stage(state)
        return state
