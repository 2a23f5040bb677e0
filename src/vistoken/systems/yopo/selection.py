"""Which heads look at the picture: from ratios measured on samples to a head mask.

S samples, L layers, H attention heads.
"""

from __future__ import annotations

from math import floor

import torch
from torch import Tensor

from vistoken.core.errors import UsageError

FIRST_CUT = 2
"""Layers 0 and 1 keep every head."""


def activity_ratio(visual_mass: Tensor, rows: Tensor) -> Tensor:
    """Attention that a head pays to the picture over what it pays to text.

    Args:
        visual_mass (Tensor): (..., H), probability on visual columns, summed over query rows.
        rows (Tensor): Number of those query rows, broadcast over the last dimension; the
            probabilities of each of them sum to 1.

    Returns:
        (..., H) float64, 0 to infinity.
    """
    mass, total = visual_mass.double(), rows.double()
    return mass / (total - mass).clamp(min=torch.finfo(torch.float32).tiny)


def vote(ratios: Tensor, majority: float) -> Tensor:
    """The ratio that exactly more than a share of the samples reach or exceed.

    A head whose statistic is above a threshold is active on more than ``majority`` of the samples,
    so one number per head stands for the vote at every threshold.

    Args:
        ratios (Tensor): (S, L, H), one activity ratio per sample.
        majority: Share of the samples, at least 0 and below 1.

    Returns:
        (L, H).

    Raises:
        UsageError: The share is out of range.
    """
    if not 0 <= majority < 1:
        raise UsageError(f"majority must be at least 0 and below 1, got {majority}")
    samples = len(ratios)
    others = floor(majority * samples + 1e-9)  # 0.29 * 100 is a little less than 29
    return ratios.sort(dim=0, descending=True).values[others]


def choose_heads(statistic: Tensor, threshold: float) -> Tensor:
    """Heads to keep.

    Args:
        statistic (Tensor): (L, H), see :func:`vote`.
        threshold: Heads above it are kept; layers 0 and 1 keep all of theirs.

    Returns:
        (L, H) bool.
    """
    keep = statistic > threshold
    keep[:FIRST_CUT] = True
    return keep


def threshold_for(statistic: Tensor, heads: float) -> float:
    """The threshold at which so many heads per layer are kept on average.

    Args:
        statistic (Tensor): (L, H), see :func:`vote`.
        heads: Wanted mean number of heads over the layers from 2 on; it is met as closely as
            whole heads allow.

    Returns:
        Half way between the last statistic kept and the first one left out.

    Raises:
        UsageError: More heads than there are, fewer than none, or no layer to choose in.
    """
    values = statistic[FIRST_CUT:]
    if not 0 <= heads <= statistic.shape[1]:
        raise UsageError(
            f"heads must be from 0 to {statistic.shape[1]}, the heads of a layer; got {heads}"
        )
    if not len(values):
        raise UsageError(
            f"a model of {len(statistic)} layers has none in which heads could be chosen: the "
            f"first {FIRST_CUT} keep all"
        )
    ranked = values.flatten().sort(descending=True).values
    kept = round(heads * len(values))
    if kept == len(ranked):
        return -1.0
    above = ranked[kept - 1] if kept else ranked[0]
    return float((above + ranked[kept]) / 2) if kept else float(above)
