"""What scoring a prompt's rows multiplies, without running it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.models.decoder.families import LayerModules
from vistoken.models.decoder.layer_count import count_layer
from vistoken.models.decoder.plan import STOCK_LAYER
from vistoken.models.decoder.rows import RowSet
from vistoken.models.decoder.state import SequenceState


class ScoringCounter:
    """Stands in for the scorer of a running prompt: counts, and answers with zeros.

    Args:
        language_model: Headless text model, on any device.
        state: The prompt, with tables on the CPU.

    Attributes:
        flops: What the scores asked for so far would have cost.
    """

    def __init__(self, language_model: PreTrainedModel, state: SequenceState) -> None:
        self._model: Any = language_model
        self._state = state
        self.flops = 0

    def key_scores(self, layer: int, rows: Tensor, cols: Tensor, after: Tensor) -> Tensor:
        """See :class:`~vistoken.models.decoder.mechanism.PromptScorer`."""
        family = self._model.config.model_type
        for number in range(layer):
            parts = LayerModules.of(self._model.layers[number], family)
            self.flops += count_layer(parts, STOCK_LAYER, self._state).flops
        parts = LayerModules.of(self._model.layers[layer], family)
        key, query = _size(parts.k_proj), _size(parts.q_proj)
        asking = RowSet(rows).where.numel()
        products = rows.numel() * key[0] * key[1] + asking * query[0] * query[1]
        self.flops += 2 * (products + asking * rows.shape[1] * query[1])
        return torch.zeros(rows.shape)


def _size(linear: Any) -> tuple[int, int]:
    return int(linear.in_features), int(linear.out_features)
