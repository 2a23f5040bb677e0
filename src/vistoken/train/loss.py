"""Cross-entropy at supervised positions, without the logits of all of them at once.

The head runs on a slice of the positions at a time and its logits are dropped; the backward pass
computes them again. So the memory is that of one slice, whatever the vocabulary and the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 1 << 27
"""Size of one slice's float32 logits (128 MiB: 1024 positions at a vocabulary of 32 K)."""


def chunk_rows(vocabulary: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Positions whose float32 logits fit into so many bytes; at least one."""
    return max(chunk_bytes // (4 * vocabulary), 1)


def summed_cross_entropy(
    head: nn.Module, hidden: Tensor, targets: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every target, added up.

    The head is called as a module, so quantised, adapted and sharded heads work like plain ones.

    Args:
        head: Maps (m, D) to logits (m, vocabulary).
        hidden (Tensor): (M, D), states that predict the targets.
        targets (Tensor): (M,) int64.
        rows: Positions at a time; see :func:`chunk_rows`.

    Returns:
        The sum (0-d, float32), and the most likely token of every position (M,) int64.
    """

    def slice_loss(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float()
        predicted = logits.detach().argmax(-1)
        return F.cross_entropy(logits, wanted, reduction="sum"), predicted

    if len(targets) <= rows:  # nothing to save by computing the logits twice
        return slice_loss(hidden, targets)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    predicted: list[Tensor] = []
    for states, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        part, best = checkpoint(
            slice_loss, states, wanted, use_reentrant=False, preserve_rng_state=False
        )
        total = total + part
        predicted.append(best)
    return total, torch.cat(predicted)


def summed_divergence(
    head: nn.Module,
    hidden: Tensor,
    before: Tensor,
    head_before: Callable[[], AbstractContextManager[None]],
    rows: int,
) -> Tensor:
    """Divergence from earlier predictions at every position, KL(before || now), added up.

    Args:
        head: Maps (m, D) to logits (m, vocabulary).
        hidden (Tensor): (M, D), states of now.
        before (Tensor): (M, D), states of before; no gradient flows into them.
        head_before: Makes the head what it was before, while entered.
        rows: Positions at a time; there are two slices of logits.

    Returns:
        The sum, 0-d, float32, at least 0 but for rounding.
    """

    def slice_divergence(now: Tensor, then: Tensor) -> Tensor:
        with torch.no_grad(), head_before():
            wanted = F.log_softmax(head(then).float(), dim=-1)
        found = F.log_softmax(head(now).float(), dim=-1)
        return F.kl_div(found, wanted, reduction="sum", log_target=True)

    if len(hidden) <= rows:
        return slice_divergence(hidden, before)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for now, then in zip(hidden.split(rows), before.split(rows), strict=True):
        total = total + checkpoint(
            slice_divergence, now, then, use_reentrant=False, preserve_rng_state=False
        )
    return total
