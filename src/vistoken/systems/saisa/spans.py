"""Whether the visual rows of a call pair off with the encoder's features."""

from __future__ import annotations

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN


def check_slots(token_map: Tensor, rows: Tensor, counts: list[int]) -> None:
    """Refuse visual rows that do not pair off with the encoder's features.

    Args:
        token_map (Tensor): (B, n, K) int64.
        rows (Tensor): (B, n) bool, those that stand for a feature.
        counts: Features of each medium of the batch.

    Raises:
        UsageError: A medium has another number of rows than of features, or media are mixed up.
    """
    media = TOKEN.get(token_map[rows], "media")
    slots = torch.bincount(media.clamp(min=0), minlength=len(counts)).tolist()
    if bool((media < 0).any()) or len(slots) > len(counts):
        raise UsageError(
            f"the prompt has visual tokens of {len(slots)} images, but features of {len(counts)} "
            "came with it; pass the encoded images that belong to the prompt"
        )
    for number, (given, wanted) in enumerate(zip(slots, counts, strict=True)):
        if given != wanted:
            raise UsageError(
                f"image {number} has {given} visual tokens in the prompt but {wanted} encoder "
                "features; saisa needs one token per feature: do not truncate a prompt inside an "
                "image, and pass the images that belong to it"
            )
    if bool((media.diff() < 0).any()):
        raise UsageError(
            "the images of the token map do not stand in the order of their features; pass both "
            "in order of appearance"
        )
