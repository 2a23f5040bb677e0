"""Low-rank kernels from trained full ones, by truncated singular value decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from vistoken.systems.llava_sp.stage import LlavaSP


def factorise(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Best factorisation of a convolution into rank channels and a pointwise convolution.

    Args:
        weight (Tensor): (M, C, k, k') full kernel.
        rank: Inner channels r; more than min(M, C*k*k') are filled with zeros.

    Returns:
        The kernel (r, C, k, k'), the pointwise kernel (M, r, 1, 1), both in the weight's dtype,
        and the relative error (Frobenius) of their product.
    """
    matrix = weight.detach().to(torch.float64).flatten(1)
    # Of the M x M Gram matrix: a kernel is far wider than high, its own SVD would be slow.
    values, left = torch.linalg.eigh(matrix @ matrix.T)
    left = left.flip(1)[:, :rank]
    right = left.T @ matrix
    norms = right.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    kernel, pointwise = right / norms[:, None], left * norms
    kept = values.flip(0)[:rank].sum()
    total = values.sum()
    error = ((total - kept).clamp_min(0) / total).sqrt().item() if total > 0 else 0.0
    missing = rank - left.shape[1]
    if missing > 0:
        kernel = torch.cat([kernel, kernel.new_zeros(missing, kernel.shape[1])])
        pointwise = torch.cat([pointwise, pointwise.new_zeros(len(pointwise), missing)], dim=1)
    return (
        kernel.view(rank, *weight.shape[1:]).to(weight),
        pointwise[:, :, None, None].to(weight),
        error,
    )


def initialise_low_rank(stage: LlavaSP, full: dict[str, Tensor]) -> dict[str, float]:
    """Load a full connector's weights into one with low-rank kernels.

    Args:
        stage: A stage with ``kernel: low_rank``, otherwise configured like the full one.
        full: State dict of the stage with ``kernel: full``.

    Returns:
        Relative error of every factorised kernel, by its name in ``full``.
    """
    rank = stage.config.rank
    if rank is None:
        raise ValueError("initialise_low_rank needs a stage with kernel: low_rank and a rank")
    state: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for name, weight in full.items():
        if weight.dim() != 4:
            state[name] = weight
            continue
        stem = name.removesuffix("weight")
        state[stem + "0.weight"], state[stem + "1.weight"], errors[name] = factorise(weight, rank)
    stage.load_state_dict(state)
    return errors
