"""The FFN of some rows, with some of its channels."""

from __future__ import annotations

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.models.decoder.cut_linear import from_some_inputs, some_outputs
from vistoken.models.decoder.families import LayerModules
from vistoken.models.decoder.plan import LayerPlan


def feed_forward(parts: LayerModules, plan: LayerPlan, hidden: Tensor) -> Tensor:
    """Add the FFN's output to the rows that have one.

    Args:
        parts: The layer's modules.
        plan: Says which rows, and which of them use only the first channels.
        hidden (Tensor): (B, n, D).

    Returns:
        (B, n, D).
    """
    rows = plan.query_rows if plan.ffn_rows is None else plan.ffn_rows
    if rows is None and not plan.ffn_channels:
        return hidden + parts.mlp(parts.post_norm(hidden))
    device = plan.ffn_channels[0].rows.device if rows is None else rows.device
    everything = torch.ones(hidden.shape[:2], dtype=torch.bool, device=device)
    full = everything if rows is None else rows.expand_as(everything)
    pieces: list[tuple[Tensor, int | None]] = []
    for cut in plan.ffn_channels:
        chosen = full & cut.rows
        pieces.append((chosen, cut.channels))
        full = full & ~cut.rows
    pieces.append((full, None))
    for chosen, channels in pieces:
        places = torch.nonzero(chosen.flatten()).flatten().to(hidden.device)
        picked = hidden.flatten(0, 1)[places]  # (N, D): only these rows are worked out
        if len(picked) == 0:
            continue
        normed = parts.post_norm(picked)
        if channels is None:
            # an FFN of experts wants sequences, not bare rows
            change = parts.mlp(normed[None])[0]
        else:
            change = _first_channels(parts, normed, channels)
        hidden = hidden.flatten(0, 1).index_add(0, places, change).view_as(hidden)
    return hidden


def _first_channels(parts: LayerModules, rows: Tensor, channels: int) -> Tensor:
    mlp = parts.mlp
    width = mlp.down_proj.in_features
    if not 1 <= channels <= width:
        raise UsageError(
            f"ffn_channels asks for {channels} channels of layer {parts.number}, which has {width}."
        )
    where, first = f"the FFN of layer {parts.number}", slice(channels)
    gate = some_outputs(mlp.gate_proj, rows, first, where)
    up = some_outputs(mlp.up_proj, rows, first, where)
    return from_some_inputs(mlp.down_proj, mlp.act_fn(gate) * up, first, where)
