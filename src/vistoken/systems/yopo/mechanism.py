"""The decoder mechanism ``yopo``: fewer visual computations in every layer, none from one on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from vistoken.core.errors import UsageError
from vistoken.core.parts import PartFlags
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    FfnChannels,
    LayerPlan,
    MechanismContext,
    RowHeads,
    SequenceState,
    drop_rows,
    refuse_split_media,
)
from vistoken.systems.yopo.config import YopoConfig
from vistoken.systems.yopo.neighbours import neighbours, visual_rows


class Yopo(BaseMechanism):
    """Visual tokens attend to neighbours, in some heads, with part of the FFN, in early layers.

    B batch, H query heads, n rows of a call, k keys.

    Args:
        config: The options.
        context: What the mechanism acts in.

    Raises:
        UsageError: A layer, head mask or ratio that does not fit the language model.

    Source: arXiv 2410.06169 and its code; the documentation page says what differs.
    """

    config_class = YopoConfig
    name = "yopo"
    flags = PartFlags(prefix_reusable="same_media", static_cache=False, vllm=False)

    def __init__(self, config: YopoConfig, context: MechanismContext) -> None:
        text: Any = context.text_config
        self.config = config
        self._layers: int = text.num_hidden_layers
        self._cut = _layer_cut(config, self._layers)
        self._keep = _head_keep(config, self._layers, text.num_attention_heads)
        self._channels = _ffn_channels(config, text.intermediate_size)
        self._drops = config.mode != "exact"

    def begin(self, state: SequenceState, cache: Cache | None) -> SequenceState:
        """Refuse what cannot be computed.

        Raises:
            UsageError: A prompt ends with a picture whose rows are going to be dropped, or a
                picture lies half in the cache and half in this call.
        """
        if state.token_map is None:
            return state
        rows, any_row = self._visual(state, state.token_map)
        if any_row and self._drops and self._cut < self._layers:
            _refuse_open_end(rows, state.valid)
        if any_row and self.config.window is not None and self._computes(0):
            refuse_split_media(state, self.name)  # neighbours that come later must be here
        return state

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        """Drop the visual rows where visual computation stops.

        Without a cache they stay where they are and are only left out (see :meth:`plan`): whoever
        trains reads hidden states by their place, often under a ready mask of packed samples.
        """
        if not self._drops or layer != self._cut or state.cache is None:
            return state
        rows, any_row = self._visual(state, state.table)
        return drop_rows(state, ~rows)[0] if any_row else state

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Cut neighbours, heads and channels of one layer."""
        if not self._computes(layer) and state.cache is not None:
            return STOCK_LAYER
        seen, any_key = self._visual(state, state.keys().token_map)
        if not any_key:
            return STOCK_LAYER
        if not self._computes(layer):
            return self._text_only(state, seen)
        rows, asks = self._visual(state, state.table)
        mask, mask_or = self._window(state, rows, seen) if asks else (None, None)
        keep = self._kept_heads(layer, rows.device)
        row_heads: tuple[RowHeads, ...] = ()
        if keep is not None and self.config.mode == "drop":
            mask = _and(mask, _dead_heads(keep, rows, seen))
            row_heads = (RowHeads(rows, keep),) if asks else ()
        plan = LayerPlan(
            mask=mask,
            mask_or=mask_or,
            head_value_keep=self._value_keep(layer, keep, seen, state.hidden.dtype),
            head_out_keep=self._out_keep(keep, rows, state.hidden.dtype) if asks else None,
            row_heads=row_heads,
            ffn_channels=self._ffn(rows) if asks else (),
        )
        return STOCK_LAYER if plan.is_trivial else plan

    def _text_only(self, state: SequenceState, rows: Tensor) -> LayerPlan:
        """A layer without a cache in which visual rows neither ask nor are seen."""

        def find() -> tuple[Tensor, Tensor]:
            return ~rows, (rows[:, :, None] | ~rows[:, None, :])[:, None]

        asking, allowed = state.memo.get("yopo/text", (rows,), find)
        return LayerPlan(mask=allowed, query_rows=asking)

    def _computes(self, layer: int) -> bool:
        """Whether visual rows still take part in a layer."""
        return not self._drops or layer < self._cut

    def _visual(self, state: SequenceState, table: Tensor) -> tuple[Tensor, bool]:
        """Visual rows of a table, and whether there are any."""

        def find() -> tuple[Tensor, bool]:
            rows = visual_rows(table, self.config.token_kinds)
            return rows, bool(rows.any())

        return state.memo.get("yopo/visual", (table,), find)

    def _window(
        self, state: SequenceState, rows: Tensor, seen: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Masks (B, 1, n, k) that restrict visual rows to their neighbours, and show later ones."""
        window = self.config.window
        if window is None:
            return None, None

        def find() -> tuple[Tensor, Tensor]:
            near = neighbours(state.table, rows, window)
            # pictures of earlier calls are other pictures
            near = torch.nn.functional.pad(near, (seen.shape[1] - rows.shape[1], 0))
            allowed = near | ~(rows[:, :, None] & seen[:, None, :])
            return allowed[:, None], near[:, None]

        allowed, near = state.memo.get("yopo/window", (state.table, seen), find)
        return allowed, None if self.config.causal_local else near

    def _kept_heads(self, layer: int, device: torch.device) -> Tensor | None:
        """Heads (H,) bool that compute for visual tokens in a layer; None where all do."""
        # no tensor is kept: models are built on the meta device
        if self._keep is None or "0" not in self._keep[layer]:
            return None
        return torch.tensor([digit == "1" for digit in self._keep[layer]], device=device)

    def _value_keep(
        self, layer: int, keep: Tensor | None, seen: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """Factors (B, H or 1, k) on values: a value of 0 is a probability of 0 after softmax."""
        if self.config.mode == "drop":
            return None
        if layer >= self._cut:
            return (~seen[:, None, :]).to(dtype)
        if keep is None:
            return None
        return (keep[None, :, None] | ~seen[:, None, :]).to(dtype)

    def _out_keep(self, keep: Tensor | None, rows: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Factors (B, H, n) on the outputs of visual rows; in mode drop they are not computed."""
        if keep is None or self.config.mode != "exact":
            return None
        return (keep[None, :, None] | ~rows[:, None, :]).to(dtype)

    def _ffn(self, rows: Tensor) -> tuple[FfnChannels, ...]:
        return () if self.config.mlp_ratio == 1 else (FfnChannels(rows, self._channels),)


def _dead_heads(keep: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
    """Mask (B, H, n, k) that hides visual keys from text rows in dead heads.

    Visual rows keep their keys there: what they compute is multiplied by zero, and a row without
    any key (a picture at the start) would have no softmax.
    """
    hidden = ~rows[:, :, None] & seen[:, None, :]
    return keep[None, :, None, None] | ~hidden[:, None]


def _and(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first & second


def _layer_cut(config: YopoConfig, layers: int) -> int:
    if config.layer_cut is None:
        return layers
    if config.layer_cut > layers:
        raise UsageError(
            f"yopo: layer_cut {config.layer_cut} is beyond the language model's {layers} layers; "
            f"choose 0 to {layers}"
        )
    return config.layer_cut


def _head_keep(config: YopoConfig, layers: int, heads: int) -> tuple[str, ...] | None:
    keep = config.head_keep
    if keep is not None and (len(keep), len(keep[0])) != (layers, heads):
        raise UsageError(
            f"yopo: head_keep has {len(keep)} layers of {len(keep[0])} heads, the language model "
            f"{layers} of {heads}; use a mask made for this model"
        )
    return keep


def _ffn_channels(config: YopoConfig, width: int) -> int:
    if width % config.mlp_ratio:
        raise UsageError(
            f"yopo: mlp_ratio {config.mlp_ratio} does not divide the {width} feed-forward "
            "channels; choose a divisor"
        )
    return width // config.mlp_ratio


def _refuse_open_end(rows: Tensor, valid: Tensor) -> None:
    """A prompt must end with a row that is still there in the last layer."""
    last = valid.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)
    ends = rows.gather(1, last[:, None])[:, 0] & valid.any(dim=1)
    if bool(ends.any()):
        raise UsageError(
            f"yopo: prompt {int(ends.int().argmax())} ends with a picture, whose rows leave the "
            "sequence at layer_cut; put text behind it (and prefill the prompt in one piece)"
        )
