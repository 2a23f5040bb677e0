"""Who sees whom in packed rows, in the form that each attention function takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from vistoken.core.errors import UsageError
from vistoken.models._compat import attention_backend

PREFIX = -1
"""Branch of the positions that every branch of their sample sees."""


@dataclass(frozen=True)
class Segments:
    """What each position of packed rows belongs to.

    A position sees the earlier ones (and itself) of its own sample that are in the sample's prefix
    or in its own branch. Padding belongs to samples of one position each.

    Attributes:
        sample: (B, n) int64.
        branch: (B, n) int64, :data:`PREFIX` in a prefix.
    """

    sample: Tensor
    branch: Tensor

    def to(self, device: torch.device) -> Segments:
        """The same on a device."""
        return Segments(self.sample.to(device), self.branch.to(device))

    def dense(self) -> Tensor:
        """(B, 1, n, n) bool, True where a row attends to a column."""
        n = self.sample.shape[-1]
        causal = torch.ones(n, n, dtype=torch.bool, device=self.sample.device).tril()
        same_sample = self.sample[:, :, None] == self.sample[:, None, :]
        same_branch = self.branch[:, :, None] == self.branch[:, None, :]
        prefix = self.branch[:, None, :] == PREFIX
        return (causal & same_sample & (same_branch | prefix)).unsqueeze(1)

    def rule(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The same as a function of (row, head, query, key), for flex attention."""
        sample, branch = self.sample, self.branch

        def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_sample = sample[row, query] == sample[row, key]
            same_branch = branch[row, query] == branch[row, key]
            return (query >= key) & same_sample & (same_branch | (branch[row, key] == PREFIX))

        return allowed

    def blocks(self) -> Any:
        """The same as a ``BlockMask``: blocks that nobody sees are never computed."""
        from torch.nn.attention.flex_attention import create_block_mask

        rows, n = self.sample.shape
        device = self.sample.device
        # compiled, no (n, n) mask is ever written down; a compiler is certain only with a GPU
        options: dict[str, Any] = {"_compile": True} if device.type == "cuda" else {}
        return create_block_mask(self.rule(), rows, None, n, n, device=device, **options)


def decoder_mask(
    segments: Segments, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> Any:
    """The mask of packed rows in the form that a text model's attention takes.

    Args:
        segments: What the positions belong to.
        config: The text model's configuration, which names its attention.
        dtype: Floating type of the hidden states.
        device: Where the model is.

    Returns:
        (B, 1, n, n) of bool or ``dtype``; for flex attention a ``BlockMask``.

    Raises:
        UsageError: The attention takes no mask of its own, such as flash attention.
    """
    backend = attention_backend(config)
    on_device = segments.to(device)
    if backend.is_flex:
        return on_device.blocks()
    if not backend.takes_mask:
        raise UsageError(
            f"attention {backend.name!r} takes no mask of its own, which packed questions need; "
            "use attn_implementation='sdpa' or 'flex_attention'"
        )
    mask = on_device.dense()
    if backend.mask == "bool":
        return mask
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, lowest)
