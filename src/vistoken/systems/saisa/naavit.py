"""NAAViT: no attention among visual tokens; they still pass every layer's FFN.

Source: arXiv 2502.02458.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from vistoken.core.parts import PartFlags
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    LayerPlan,
    MechanismContext,
    SequenceState,
)
from vistoken.models.scatter import feature_rows
from vistoken.systems.saisa.config import NaavitConfig

ROWS = "naavit/visual"
"""Key in the state's ``extra``: (B, n) bool, the visual rows."""


class Naavit(BaseMechanism):
    """Visual tokens ask nothing: attention leaves them alone, the FFN does not.

    With ``naavit_self`` each of them attends to itself, with ``naavit_text`` to the text before
    it. It has no weights and works, as a measurement, on a trained LLaVA as it is.

    Args:
        config: Options.
        context: Not used; every mechanism gets it.
    """

    config_class = NaavitConfig
    name = "naavit"
    flags = PartFlags(static_cache=False, vllm=False)

    def __init__(self, config: NaavitConfig, context: MechanismContext | None = None) -> None:
        del context
        self.config = config
        self.own_cache = config.naavit_self or config.naavit_text  # asks what the keys are

    def begin(self, state: SequenceState, cache: Cache | None) -> SequenceState:
        """Find the visual rows of this call."""
        if state.token_map is None:
            return state
        rows = feature_rows(state.token_map) & state.valid
        if bool(rows.any()):
            state.extra[ROWS] = rows
        return state

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Text rows are queries; every row that is no padding goes through the FFN."""
        if ROWS not in state.extra:
            return STOCK_LAYER
        visual = state.extra[ROWS]
        if not self.own_cache:
            return LayerPlan(query_rows=~visual & state.valid, ffn_rows=state.valid)
        allowed = self._allowed(state, visual)
        mask = torch.where(visual[:, :, None], allowed, True)
        asks = torch.where(visual, (allowed & _seen(state)).any(-1), state.valid)
        return LayerPlan(query_rows=asks, ffn_rows=state.valid, mask=mask[:, None])

    def _allowed(self, state: SequenceState, visual: Tensor) -> Tensor:
        """What visual rows may attend to, (B, n, k), before causality."""
        table = state.keys()
        rows, keys = visual.shape[1], table.valid.shape[1]
        allowed = torch.zeros(*visual.shape, keys, dtype=torch.bool, device=visual.device)
        if self.config.naavit_text:
            allowed |= (~feature_rows(table.token_map) & table.valid)[:, None, :]
        if self.config.naavit_self:
            own = torch.eye(rows, dtype=torch.bool, device=visual.device)
            allowed[:, :, keys - rows :] |= own
        return allowed


def _seen(state: SequenceState) -> Tensor:
    """Keys (B, n, k) that are not behind the row; an image may open the prompt."""
    order = state.keys().order
    mine = order[:, -state.hidden.shape[1] :]
    return order[:, None, :] <= mine[:, :, None]
