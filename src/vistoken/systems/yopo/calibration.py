"""Measuring which heads look at the picture: reduced inside each layer, no map is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from vistoken.core.tables import TokenKind
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    LayerPlan,
    MechanismStack,
    ScoreRequest,
    SequenceState,
)
from vistoken.systems.yopo.neighbours import visual_rows
from vistoken.systems.yopo.selection import activity_ratio

Queries = Literal["all", "last"]


class HeadActivity(BaseMechanism):
    """Writes each layer's activity ratios (B, H) into ``aux`` as ``yopo-activity/<layer>``.

    Args:
        kinds: Kinds of tokens that count as visual.
        queries: ``all`` rows of the prompt ask, or only its ``last``, which writes the answer's
            first token.
    """

    name = "yopo-activity"
    own_cache = False

    def __init__(self, kinds: tuple[TokenKind, ...], queries: Queries) -> None:
        self._kinds = kinds
        self._queries = queries

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Ask for the probability that falls on visual columns."""
        visual = visual_rows(state.table, self._kinds)
        if not bool(visual.any()):
            return STOCK_LAYER
        request = ScoreRequest(
            self._label(layer),
            rows=self._rows(state),
            cols=visual,
            over_rows="sum",
            over_cols="sum",
        )
        return LayerPlan(need_scores=(request,))

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        """Turn it into ratios; the rest of a row's probability falls on text."""
        name = self._label(layer)
        if name in state.scores:
            rows = self._rows(state).sum(dim=1, keepdim=True)
            aux[name] = activity_ratio(state.scores[name], rows)

    def _label(self, layer: int) -> str:
        return f"{self.name}/{layer}"

    def _rows(self, state: SequenceState) -> Tensor:
        if self._queries == "all":
            return state.valid
        number = torch.arange(state.valid.shape[1], device=state.valid.device)
        last = (number * state.valid).amax(dim=1, keepdim=True)
        return state.valid & (number == last)


def measure(
    model: Any, inputs: Mapping[str, Any], kinds: tuple[TokenKind, ...], queries: Queries
) -> Tensor | None:
    """Activity ratios of every head on one prompt.

    Args:
        model: A :class:`~vistoken.models.modeling.VistokenForConditionalGeneration`; a YOPO that
            it has is switched off meanwhile.
        inputs: What its forward takes.
        kinds: Kinds of tokens that count as visual.
        queries: Which rows ask.

    Returns:
        (L, H) float64 on the CPU, the mean over the prompts; None without a visual token.
    """
    layers = model.config.text_config.num_hidden_layers
    with _measuring(model.model, HeadActivity(kinds, queries)):
        aux = model.model(**inputs, use_cache=False).aux or {}
    names = [f"{HeadActivity.name}/{layer}" for layer in range(layers)]
    if any(name not in aux for name in names):
        return None
    return torch.stack([aux[name].mean(dim=0).cpu() for name in names])


@contextmanager
def _measuring(backbone: Any, activity: HeadActivity) -> Iterator[None]:
    """Let the activity be measured beside whatever else acts in the decoder."""
    before = backbone.stack
    others = [mechanism for mechanism in before if mechanism.name != "yopo"]
    backbone.stack = MechanismStack([*others, activity])
    try:
        yield
    finally:
        backbone.stack = before
