"""Attention rollout: what each row's state is made of, followed through the layers.

Source: arXiv 2005.00928, section 3 (attention rollout): residual paths count one half.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Rollout:
    """Shares of the input rows in every row's state, layer after layer.

    A row that is no query in a layer, or no longer there, keeps its shares. Attention that goes to
    nothing (values set to 0) stays with the row itself, so that shares always sum to 1.

    Args:
        shape: Sequences B and positions n.
    """

    def __init__(self, shape: torch.Size) -> None:
        batch, length = shape
        self._shares = torch.eye(length).repeat(batch, 1, 1)

    def pass_layer(self, weights: Tensor, rows: list[Tensor], order: Tensor) -> None:
        """Go through one layer.

        Args:
            weights (Tensor): (B, r, k), attention of its asked rows, at most 1 in sum.
            rows: For each sequence its asked rows' numbers among the layer's rows.
            order (Tensor): (B, k) int64, places of the layer's rows, -1 on filling.
        """
        for number, own in enumerate(rows):
            real = order[number] >= 0
            keys = order[number][real].cpu()
            places = order[number][own].cpu()
            attended = 0.5 * weights[number, : len(own)][:, real].float().cpu()
            before = self._shares[number]
            mixed = attended @ before[keys]
            mixed += (1 - attended.sum(-1, keepdim=True)) * before[places]
            self._shares[number, places] = mixed

    def of(self, asked: Tensor) -> Tensor:
        """Shares (B, A, n) of some rows (B, n) bool; 0 behind a sequence's last one."""
        most = int(asked.sum(1).max())
        result = self._shares.new_zeros(len(asked), most, asked.shape[1])
        for number, row in enumerate(asked):
            result[number, : int(row.sum())] = self._shares[number, row]
        return result
