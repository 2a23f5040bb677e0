"""Which rows hold an encoder feature, told by the TokenMap alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind

_WITH_FEATURE = (TokenKind.VISUAL, TokenKind.REGISTER)


def feature_rows(token_map: Tensor) -> Tensor:
    """Rows (B, n) bool of a TokenMap (B, n, K) that stand for one encoder feature each.

    Patches and the encoder's prefix tokens do. Learned rows (newlines, separators) and tokens that
    a connector makes (spatial, object) do not: for the mechanisms here they are text.
    """
    kind = TOKEN.get(token_map, "kind")
    projected = torch.zeros_like(kind, dtype=torch.bool)
    for with_feature in _WITH_FEATURE:
        projected |= kind == with_feature
    return projected & (TOKEN.get(token_map, "learned") < 0)


def check_slots(token_map: Tensor, rows: Tensor, counts: list[int]) -> None:
    """Refuse visual rows that do not pair off, in order, with the encoder's features.

    Args:
        token_map (Tensor): (B, n, K) int64.
        rows (Tensor): (B, n) bool, see :func:`feature_rows`.
        counts: Features of each medium of the batch.

    Raises:
        UsageError: A medium has another number of slots than of features, or another order.
    """
    table = token_map[rows]
    media, view = TOKEN.get(table, "media"), TOKEN.get(table, "view")
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
                "features; saisa needs one token per feature: no 'reduce' stage, a layout that "
                "drops none, and no truncation inside an image"
            )
    place = media * (view.max() + 1 if len(view) else 1) + view
    if bool((place.diff() < 0).any()):
        raise UsageError(
            "the layout mixes the tokens of several views, so they do not stand in the order of "
            "the encoder's features; saisa needs the layout 'plain'"
        )


def media_counts(features: list[Any]) -> list[int]:
    """Features of each medium, from its anchor views' tensors (N, width)."""
    return [sum(len(view) for view in medium) for medium in features]
