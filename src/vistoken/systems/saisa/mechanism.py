"""SAISA: each layer projects the encoder's features into its own self-attention input space.

Visual tokens are keys and values for the text and nothing else: no queries, no FFN, no state that
travels from layer to layer. It equals a causal decoder in which the visual rows are overwritten
with the layer's projection before every layer.

Source: arXiv 2502.02458; the released decoder, behaviour only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from vistoken.core.errors import UsageError
from vistoken.core.parts import FEATURES, PartFlags
from vistoken.models.conversion import Convertible
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    Inject,
    LayerPlan,
    MechanismContext,
    SequenceState,
)
from vistoken.models.scatter import feature_rows
from vistoken.systems.saisa.config import SaisaConfig
from vistoken.systems.saisa.projectors import LayerProjectors
from vistoken.systems.saisa.spans import check_slots
from vistoken.systems.saisa.visual_kv import VISUAL_KV, VisualKV, ready

SLOT = "saisa/slot"
"""Key in the state's ``extra``: number of each row's feature in the batch, -1 without one."""

_CALL = "saisa/call"


@dataclass(frozen=True)
class _Call:
    """What one call of the decoder keeps between its layers.

    Args:
        slots (Tensor): (B, n) int64, as at the start.
        rows (Tensor): (B, n) bool, rows with a feature.
        queries (Tensor): (B, n) bool, all others but padding.
        features (Tensor | None): (N, width), of all images; None where keys are ready.
        images: Ready keys and values; None where they are computed here.
    """

    slots: Tensor
    rows: Tensor
    queries: Tensor
    features: Tensor | None
    images: list[VisualKV] | None


class Saisa(nn.Module, BaseMechanism, Convertible):
    """Per-layer visual keys and values from per-layer projectors.

    Args:
        config: Options.
        context: Language model and encoder around it.
    """

    config_class = SaisaConfig
    name = "saisa"
    flags = PartFlags(static_cache=False, vllm=False)
    own_cache = False  # drops nothing and never asks what the cache holds
    side_inputs = (FEATURES,)

    def __init__(self, config: SaisaConfig, context: MechanismContext) -> None:
        super().__init__()
        self.config = config
        text: Any = context.text_config
        self.projectors = LayerProjectors(
            config.projector_sharing,
            text.num_hidden_layers,
            context.feature_width,
            text.hidden_size,
        )

    def convert(self, config: SaisaConfig) -> None:
        """Give each layer its own projector; the outputs stay the same.

        Raises:
            UsageError: The projectors are per layer already and cannot be joined.
        """
        if config == self.config:
            return
        if config.projector_sharing != "independent":
            raise UsageError(
                "saisa's projectors differ by layer and cannot become one again; start from a "
                "checkpoint with projector_sharing: shared_then_split"
            )
        self.projectors.split()
        self.config = config

    def project(self, layer: int, features: Tensor) -> Tensor:
        """Visual rows of a layer's input.

        Args:
            layer: Number of the layer.
            features (Tensor): (..., feature width), from the encoder.

        Returns:
            (..., D), in the projector's type.
        """
        projector = self.projectors.of(layer)
        rows: Tensor = projector(features.to(next(projector.parameters())))
        return rows

    def begin(self, state: SequenceState, cache: Cache | None) -> SequenceState:
        """Find the visual rows of this call and what belongs to each.

        Raises:
            UsageError: They do not pair off with the encoder's features.
        """
        if state.token_map is None:
            return state
        rows = feature_rows(state.token_map) & state.valid
        if not bool(rows.any()):
            return state
        images: list[VisualKV] | None = state.side.get(VISUAL_KV)
        encoded: list[Tensor] | None = state.side.get(FEATURES)
        media = encoded if images is None else images
        if media is None:
            raise UsageError(
                "saisa needs the encoder's features beside the visual tokens; pass what "
                "get_image_features returned as a whole, with its side outputs"
            )
        check_slots(state.token_map, rows, [len(medium) for medium in media])
        number = rows.flatten().cumsum(0).view_as(rows) - 1
        slots = torch.where(rows, number, -1)
        features = torch.cat(encoded) if images is None and encoded is not None else None
        call = _Call(slots, rows, ~rows & state.valid, features, images)
        return replace(state, extra={**state.extra, SLOT: slots}, side={**state.side, _CALL: call})

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Text rows are queries; visual rows get this layer's keys and values."""
        if SLOT not in state.extra:
            return STOCK_LAYER
        call: _Call = state.side[_CALL]
        slots = state.extra[SLOT]
        rows, queries, wanted = call.rows, call.queries, None
        if slots is not call.slots:  # another mechanism has taken rows away
            rows = (slots >= 0) & state.valid
            queries, wanted = ~rows & state.valid, slots[rows]
        if call.images is not None:
            kv = ready(call.images, layer, wanted, state.hidden)
            return LayerPlan(query_rows=queries, inject=(Inject(rows, kv),))
        features = call.features
        if features is None:
            raise RuntimeError("a call has neither features nor ready keys")
        chosen = features if wanted is None else features[wanted]
        dtype = state.hidden.dtype

        def source(number: int) -> Tensor:
            return self.project(number, chosen).to(dtype)

        return LayerPlan(query_rows=queries, inject=(Inject(rows, source),))
