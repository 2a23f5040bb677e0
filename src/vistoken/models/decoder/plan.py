"""What one layer is told by the active mechanisms.

Sizes: B batch, H query heads, G key/value heads, n rows of this call, k keys (cached ones first,
then the n rows), E head size, D hidden size. A size may be 1 where the value is shared. Every
field speaks of all n rows, also where only some of them are queries; the layer gathers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (B or 1, n, E)."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadyKV:
    """Keys and values of some rows that need neither projector nor norm nor projection.

    Args:
        keys (Tensor): (N, G, E), after the key norm where the family has one, before rotation.
        values (Tensor): (N, G, E).
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Inject:
    """Other content for some rows, as keys and values only.

    Args:
        rows (Tensor): (B, n) bool; none of them may be a query row.
        source: A function of the layer's number that gives the rows' content (N, D) before the
            input norm, or ready keys and values; N rows in order, batch row by batch row.
    """

    rows: Tensor
    source: Callable[[int], Tensor] | ReadyKV


@dataclass(frozen=True, slots=True, eq=False)
class FfnChannels:
    """Rows whose FFN uses only its first channels.

    Args:
        rows (Tensor): (B, n) bool.
        channels: How many channels of gate, up and down projection, at least 1.
    """

    rows: Tensor
    channels: int


@dataclass(frozen=True, slots=True, eq=False)
class RowHeads:
    """Rows that compute in some heads only.

    Their queries and outputs are worked out for these heads, their keys and values for the
    key/value heads that any of these heads reads. What is left out is 0, keys included: whoever
    cuts heads hides those keys from other rows with ``mask``.

    Args:
        rows (Tensor): (B, n) bool.
        heads (Tensor): (H,) bool, query heads that are kept.
    """

    rows: Tensor
    heads: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """Rotary tables of one layer in place of the model's own.

    Several pairs are concatenated on the head dimension, so that their scores add up.

    Args:
        pairs: For each term, the rotation of the queries and of the new keys; cached keys hold
            theirs already.
        scale: Factor on the summed scores, beside the model's own scaling.
    """

    pairs: tuple[tuple[Rotation, Rotation], ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRequest:
    """Attention scores that a mechanism wants to read after the layer, reduced.

    The result is ``state.scores[name]`` with the axes (B, H, rows, k), less those that are
    reduced: (B, H, r, k) if nothing is. The r axis holds each batch row's asked rows in order,
    zeros behind the last; the k axis holds all keys, zeros where ``cols`` is False.

    Args:
        name: ``<mechanism>/<what>``, unique in a layer.
        rows (Tensor): (B or 1, n) bool; query rows only.
        cols (Tensor): (B or 1, k) bool.
        kind: ``logits`` are scaled products without mask and bias; ``probs`` have both.
        heads: ``mean`` averages over the heads and drops their axis.
        over_rows: Reduction over the asked rows; drops their axis.
        over_cols: Reduction over the asked keys; drops their axis.
        grad: Whether gradients flow through the scores.
    """

    name: str
    rows: Tensor
    cols: Tensor
    kind: Literal["logits", "probs"] = "probs"
    heads: Literal["all", "mean"] = "all"
    over_rows: Literal["none", "mean", "sum"] = "none"
    over_cols: Literal["none", "mean", "sum"] = "none"
    grad: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LayerPlan:
    """Changes to one layer; every field defaults to "as the stock layer".

    Merging plans of several mechanisms: ``mask`` AND, ``mask_or`` OR, ``key_bias`` adds,
    ``query_rows``, ``ffn_rows`` and ``cache_write`` AND, keeps multiply, ``inject``,
    ``row_heads``, ``ffn_channels`` and ``need_scores`` are joined (overlapping rows or equal names
    are a UsageError), two ``position_embeddings`` are a UsageError.

    Args:
        mask (Tensor | None): (B, H, n, k) bool, True where attention stays allowed; can only
            narrow what causality, ``mask_or`` and padding allow.
        key_bias (Tensor | None): (B, H, n, k) float, added to the scores before the softmax.
        mask_or (Tensor | None): (B, 1, n, k) bool, allowed beside causality and window;
            padding and ``mask`` still apply.
        query_rows (Tensor | None): (B, n) bool; other rows have no query and no output
            projection, attention leaves their hidden state as it is.
        ffn_rows (Tensor | None): (B, n) bool, rows that go through norm and FFN; by default the
            query rows. The hidden state of other rows stays as it is.
        inject: Content of other rows as keys and values.
        head_value_keep (Tensor | None): (B, H, k), multiplies the values of each query head.
        head_out_keep (Tensor | None): (B, H, n), multiplies the heads' outputs before the output
            projection.
        row_heads: Rows whose projections are computed for some heads only; no row twice.
        ffn_channels: Rows that use only the first channels of the FFN.
        position_embeddings: Rotary tables of this layer.
        cache_write (Tensor | None): (B, n) bool, rows whose keys and values are kept for later
            calls; this call sees them all. Needs the mechanisms' own cache.
        need_scores: Scores to hand to the mechanisms.
    """

    mask: Tensor | None = None
    key_bias: Tensor | None = None
    mask_or: Tensor | None = None
    query_rows: Tensor | None = None
    ffn_rows: Tensor | None = None
    inject: tuple[Inject, ...] = ()
    head_value_keep: Tensor | None = None
    head_out_keep: Tensor | None = None
    row_heads: tuple[RowHeads, ...] = ()
    ffn_channels: tuple[FfnChannels, ...] = ()
    position_embeddings: Rotary | None = None
    cache_write: Tensor | None = None
    need_scores: tuple[ScoreRequest, ...] = ()

    @property
    def is_trivial(self) -> bool:
        """Whether the layer runs as the stock one."""
        return self is STOCK_LAYER or not (
            self.shapes_attention or self.recomposes or self.cache_write is not None
        )

    @property
    def shapes_attention(self) -> bool:
        """Whether the plan changes who may attend, or how much."""
        return self.mask is not None or self.mask_or is not None or self.key_bias is not None

    @property
    def recomposes(self) -> bool:
        """Whether the stock layer cannot do it: the layer is put together from its modules."""
        return bool(
            self.query_rows is not None
            or self.ffn_rows is not None
            or self.inject
            or self.head_value_keep is not None
            or self.head_out_keep is not None
            or self.row_heads
            or self.ffn_channels
            or self.position_embeddings is not None
            or self.need_scores
        )


STOCK_LAYER = LayerPlan()
"""The trivial plan."""
