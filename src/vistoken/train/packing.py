"""Shared-prefix packing: one picture, many questions, one pass of the decoder.

Rows about the same picture share their tokens up to the question. They become one sequence:

    [shared prefix with the picture] [question 1 + answer 1] [question 2 + answer 2] ...

Each branch sees the prefix and itself, and its positions go on from the prefix's end, so every
branch gets what it would get in a sequence of its own. Targets are listed as (hidden state, token)
pairs, because the prefix's last state predicts the first token of several branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from vistoken.core.errors import UsageError
from vistoken.models._compat import attention_backend

IGNORE = -100


@dataclass(frozen=True)
class Row:
    """One tokenised row of data.

    Attributes:
        input_ids: Token ids, pictures expanded.
        labels: Token id where supervised, -100 elsewhere.
        image_end: Position after the last picture's tokens, 0 without pictures.
        kind: What the row asks, for metrics by kind.
    """

    input_ids: list[int]
    labels: list[int]
    image_end: int
    kind: str = ""


@dataclass(frozen=True)
class Packed:
    """Rows behind one prefix.

    Attributes:
        input_ids: (n,) int64.
        position_ids: (n,) int64.
        branch: (n,) int64, -1 in the prefix.
        sources: (M,) int64, position whose hidden state predicts each target.
        targets: (M,) int64, supervised tokens.
        rows: (M,) int64, number of the row a target belongs to.
        kinds: Kind of every row.
    """

    input_ids: Tensor
    position_ids: Tensor
    branch: Tensor
    sources: Tensor
    targets: Tensor
    rows: Tensor
    kinds: tuple[str, ...]

    def mask(self) -> Tensor:
        """Who sees whom: (n, n) bool, True where row attends to column."""
        n = len(self.branch)
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        same = self.branch[:, None] == self.branch[None, :]
        return causal & (same | (self.branch[None, :] == -1))


@dataclass(frozen=True)
class PackedBatch:
    """Packed sequences padded to one length.

    Attributes:
        input_ids: (B, n) int64.
        position_ids: (B, n) int64.
        attention_mask: (B, 1, n, n) bool; padding sees itself only.
        sources: (M,) int64 into B * n.
        targets: (M,) int64.
        rows: (M,) int64, number of the row in the batch.
        kinds: Kind of every row.
        tokens: Positions that are not padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    sources: Tensor
    targets: Tensor
    rows: Tensor
    kinds: tuple[str, ...]
    tokens: int


def decoder_mask(mask: Tensor, config: PretrainedConfig, dtype: torch.dtype) -> Tensor:
    """A boolean mask in the form that a text model's attention takes.

    Args:
        mask (Tensor): (B, 1, n, n) bool, True where a row attends to a column.
        config: The text model's configuration, which names its attention.
        dtype: Floating type of the hidden states.

    Raises:
        UsageError: The attention takes no mask of its own, such as flash attention.
    """
    backend = attention_backend(config)
    if not backend.takes_mask:
        raise UsageError(
            f"attention {backend.name!r} takes no 4-D mask, which packed questions need; "
            "use attn_implementation='sdpa'"
        )
    if backend.mask == "bool":
        return mask
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, lowest)


def shared_prefix(rows: Sequence[Row]) -> int:
    """Length of the prefix that rows share and none is supervised in.

    Raises:
        ValueError: The rows differ before the end of the picture.
    """
    limit = min(_unsupervised(row) for row in rows)
    # every branch keeps a token of its own
    limit = min(limit, min(len(row.input_ids) for row in rows) - 1)
    first = rows[0].input_ids
    length = 0
    while length < limit and all(row.input_ids[length] == first[length] for row in rows[1:]):
        length += 1
    if length < max(row.image_end for row in rows):
        raise ValueError("rows packed behind one picture must have the same text before it")
    return length


def pack(rows: Sequence[Row]) -> Packed:
    """Put rows about the same picture(s) behind one prefix.

    Raises:
        ValueError: No rows, nothing supervised, or another text before the picture.
    """
    if not rows:
        raise ValueError("pack needs at least one row")
    prefix = shared_prefix(rows)
    ids = rows[0].input_ids[:prefix]
    positions = list(range(prefix))
    branch = [-1] * prefix
    sources: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for number, row in enumerate(rows):
        start = len(ids) - prefix  # shift of this branch's positions in the sequence
        for place in range(max(prefix, 1), len(row.input_ids)):
            if row.labels[place] != IGNORE:
                sources.append(prefix - 1 if place == prefix else start + place - 1)
                targets.append(row.labels[place])
                owners.append(number)
        ids = ids + row.input_ids[prefix:]
        positions += range(prefix, len(row.input_ids))
        branch += [number] * (len(row.input_ids) - prefix)
    if not targets:
        raise ValueError("no token of the packed rows is supervised")
    return Packed(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(branch),
        torch.tensor(sources),
        torch.tensor(targets),
        torch.tensor(owners),
        tuple(row.kind for row in rows),
    )


def batch_packed(samples: Sequence[Packed], pad_id: int) -> PackedBatch:
    """Pad packed sequences on the right to one length."""
    length = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), length), pad_id)
    positions = torch.zeros(len(samples), length, dtype=torch.int64)
    # padding attends to itself: a row without any column would be NaN
    mask = torch.eye(length, dtype=torch.bool).repeat(len(samples), 1, 1)
    sources, targets, owners = [], [], []
    kinds: list[str] = []
    for number, sample in enumerate(samples):
        n = len(sample.input_ids)
        ids[number, :n] = sample.input_ids
        positions[number, :n] = sample.position_ids
        mask[number, :n, :n] = sample.mask()
        sources.append(sample.sources + number * length)
        targets.append(sample.targets)
        owners.append(sample.rows + len(kinds))
        kinds += sample.kinds
    return PackedBatch(
        ids,
        positions,
        mask.unsqueeze(1),
        torch.cat(sources),
        torch.cat(targets),
        torch.cat(owners),
        tuple(kinds),
        sum(len(sample.input_ids) for sample in samples),
    )


def _unsupervised(row: Row) -> int:
    """Number of positions before the first supervised one."""
    for place, label in enumerate(row.labels):
        if label != IGNORE:
            return place
    return len(row.labels)
