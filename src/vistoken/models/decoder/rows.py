"""A choice of rows: gathering them, and putting results back."""

from __future__ import annotations

from torch import Tensor


class RowSet:
    """Some rows of every sequence, padded to the longest choice.

    Args:
        mask (Tensor): (B, n) bool.

    Attributes:
        mask (Tensor): (B, n) bool.
        where (Tensor): (B, q) int64, the chosen rows in order; behind the last one, row 0.
        real (Tensor): (B, q) bool, False behind the last chosen row.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        longest = int(mask.sum(1).max())
        order = (~mask).int().argsort(dim=1, stable=True)[:, :longest]
        self.real = mask.gather(1, order)
        self.where = order * self.real
        self.ragged = not bool(self.real.all())

    @property
    def is_everything(self) -> bool:
        """Whether all rows of all sequences are chosen."""
        return self.where.shape[1] == self.mask.shape[1] and not self.ragged

    def gather(self, values: Tensor, dim: int) -> Tensor:
        """Choose rows of a tensor.

        Args:
            values (Tensor): (B or 1, ...) with the n rows on axis ``dim``.
            dim: Axis of the rows.

        Returns:
            The same with q rows, and B sequences.
        """
        batch = self.where.shape[0]
        shape = [1] * values.dim()
        shape[0], shape[dim] = batch, self.where.shape[1]
        sizes = [batch, *values.shape[1:]]
        sizes[dim] = self.where.shape[1]
        expanded = values.expand(batch, *values.shape[1:])
        return expanded.gather(dim, self.where.to(values.device).reshape(shape).expand(sizes))

    def add_to(self, rows: Tensor, change: Tensor) -> Tensor:
        """Add to the chosen rows, and to no other.

        Args:
            rows (Tensor): (B, n, D).
            change (Tensor): (B, q, D).

        Returns:
            A new tensor (B, n, D).
        """
        if self.ragged:
            change = change.masked_fill(~self.real[:, :, None].to(change.device), 0)
        where = self.where.to(rows.device)[:, :, None].expand(-1, -1, rows.shape[2])
        return rows.scatter_add(1, where, change)
