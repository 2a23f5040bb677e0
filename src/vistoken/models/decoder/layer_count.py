"""What one layer multiplies under its plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vistoken.models.decoder.families import LayerModules
from vistoken.models.decoder.plan import LayerPlan, ReadyKV
from vistoken.models.decoder.state import SequenceState


@dataclass(frozen=True)
class LayerCount:
    """Rows, pairs and sizes of one layer in one call, over the whole batch.

    Args:
        rows: Rows of the call that are left.
        keys: Keys that a query row sees, cached ones included, masked or not.
        query_rows: Rows with a query.
        query_heads: Sum over them of the heads they are worked out for.
        key_rows: Rows whose key and value are worked out here.
        key_heads: Sum over them of the key/value heads they are worked out for.
        visual_rows: Rows that belong to a medium.
        visual_query_rows: Those of them with a query.
        visual_key_rows: Those of them whose key and value are worked out here.
        visual_pairs: Pairs of visual query row and visual key that the plan's mask allows.
        visual_heads: Share of the heads that visual rows keep, by ``row_heads`` and
            ``head_out_keep``.
        ffn_work: Sum over the rows of the FFN channels they use.
        visual_ffn_work: The same over visual rows.
        inject_flops: What the injected content costs.
        query_size: Numbers of the query and output projection's weights, all heads.
        key_size: Numbers of the key and value projection's weights, all heads.
        heads: Query heads of the layer.
        shared_heads: Its key/value heads.
        pair_size: Multiply-adds of one pair of query row and key, all heads.
        channel_size: Numbers of one FFN channel's weights.
        values_per_key: Numbers that the cache holds of one key.
    """

    rows: int
    keys: int
    query_rows: int
    query_heads: int
    key_rows: int
    key_heads: int
    visual_rows: int
    visual_query_rows: int
    visual_key_rows: int
    visual_pairs: int
    visual_heads: float
    ffn_work: int
    visual_ffn_work: int
    inject_flops: int
    query_size: int
    key_size: int
    heads: int
    shared_heads: int
    pair_size: int
    channel_size: int
    values_per_key: int

    @property
    def flops(self) -> int:
        """What is multiplied: attention as a full rectangle of query rows and keys."""
        products = (
            self.query_heads * self.query_size // self.heads
            + self.key_heads * self.key_size // self.shared_heads
            + self.query_rows * self.keys * self.pair_size
            + self.ffn_work * self.channel_size
        )
        return 2 * products + self.inject_flops

    def visual_flops(self, keys_per_row: int | None = None) -> float:
        """FLOPs for visual rows among themselves; pairs with text are left out.

        Heads that visual rows do not keep count as not worked out.

        Args:
            keys_per_row: Visual keys of each visual query row; as the mask allows when None.
        """
        pairs = self.visual_pairs
        if keys_per_row is not None:
            pairs = self.visual_query_rows * keys_per_row
        attention = (
            self.visual_query_rows * self.query_size
            + self.visual_key_rows * self.key_size
            + pairs * self.pair_size
        )
        channels = self.visual_ffn_work * self.channel_size
        return 2 * (attention * self.visual_heads + channels) + self.inject_flops


def count_layer(parts: LayerModules, plan: LayerPlan, state: SequenceState) -> LayerCount:
    """Count a layer about to run.

    Args:
        parts: Its modules, on any device.
        plan: What it is told.
        state: Its rows, with tables on the CPU.
    """
    visual = state.visual
    everything = torch.ones_like(visual)
    queries = everything if plan.query_rows is None else plan.query_rows.expand_as(visual)
    ffn = queries if plan.ffn_rows is None else plan.ffn_rows.expand_as(visual)
    fresh = everything.clone()
    inject_flops = 0
    for inject in plan.inject:
        if isinstance(inject.source, ReadyKV):
            fresh &= ~inject.rows
        else:
            with FlopCounterMode(display=False) as counter:
                inject.source(parts.number)
            inject_flops += counter.get_total_flops()
    keys = state.keys()
    total = keys.order.shape[1]
    work = _ffn_work(parts, plan, ffn)
    query_heads, key_heads = _head_work(parts, plan, queries, fresh)
    query_out, key_out = _outputs(parts.q_proj), _outputs(parts.k_proj)
    value_out = _outputs(parts.v_proj)
    width = _inputs(parts.q_proj)
    heads = query_out // parts.head_dim
    terms = 1 if plan.position_embeddings is None else len(plan.position_embeddings.pairs)
    value_size = value_out // (key_out // parts.head_dim)
    return LayerCount(
        rows=visual.numel(),
        keys=total,
        query_rows=int(queries.sum()),
        query_heads=query_heads,
        key_rows=int(fresh.sum()),
        key_heads=key_heads,
        visual_rows=int(visual.sum()),
        visual_query_rows=int((queries & visual).sum()),
        visual_key_rows=int((fresh & visual).sum()),
        visual_pairs=_visual_pairs(plan, state, queries & visual),
        visual_heads=_visual_heads(plan, visual, heads),
        ffn_work=int(work.sum()),
        visual_ffn_work=int(work[visual].sum()),
        inject_flops=inject_flops,
        query_size=width * query_out + heads * value_size * width,
        key_size=width * (key_out + value_out),
        heads=heads,
        shared_heads=key_out // parts.head_dim,
        pair_size=heads * (terms * parts.head_dim + value_size),
        channel_size=3 * width,
        values_per_key=terms * key_out + value_out,
    )


def _inputs(linear: torch.nn.Module) -> int:
    size = linear.in_features
    return int(size)  # type: ignore[arg-type]


def _outputs(linear: torch.nn.Module) -> int:
    size = linear.out_features
    return int(size)  # type: ignore[arg-type]


def _ffn_work(parts: LayerModules, plan: LayerPlan, ffn: Tensor) -> Tensor:
    """Channels (B, n) int64 that each row uses."""
    work = ffn.long() * int(parts.mlp.down_proj.in_features)
    left = ffn.clone()
    for cut in plan.ffn_channels:
        chosen = left & cut.rows
        work[chosen] = cut.channels
        left &= ~cut.rows
    return work


def _head_work(
    parts: LayerModules, plan: LayerPlan, queries: Tensor, fresh: Tensor
) -> tuple[int, int]:
    """Sums of query heads over query rows, and of key/value heads over rows with a new key."""
    heads = _outputs(parts.q_proj) // parts.head_dim
    shared = _outputs(parts.k_proj) // parts.head_dim
    asked, made = heads * int(queries.sum()), shared * int(fresh.sum())
    for cut in plan.row_heads:
        read = int(cut.heads.view(shared, -1).any(dim=1).sum())
        asked -= (heads - int(cut.heads.sum())) * int((queries & cut.rows).sum())
        made -= (shared - read) * int((fresh & cut.rows).sum())
    return asked, made


def _visual_pairs(plan: LayerPlan, state: SequenceState, queries: Tensor) -> int:
    """Pairs of visual rows and keys that may attend; averaged where heads differ."""
    keys = state.keys()
    allowed = state.row_order[:, :, None] >= keys.order[:, None, :]
    if plan.mask_or is not None:
        allowed = allowed | plan.mask_or[:, 0]
    allowed = (allowed & queries[:, :, None] & keys.visual[:, None, :])[:, None]
    if plan.mask is None:
        return int(allowed.sum())
    narrowed = allowed & plan.mask
    return int(narrowed.sum()) // narrowed.shape[1]


def _visual_heads(plan: LayerPlan, visual: Tensor, heads: int) -> float:
    if not bool(visual.any()):
        return 1.0
    keep = torch.ones(visual.shape[0], heads, visual.shape[1], dtype=torch.bool)
    if plan.head_out_keep is not None:
        keep = keep & (plan.head_out_keep != 0)
    for cut in plan.row_heads:
        keep = keep & (cut.heads[None, :, None] | ~cut.rows[:, None])
    kept = keep.transpose(1, 2)[visual]  # (rows, heads)
    return float(kept.float().mean())
