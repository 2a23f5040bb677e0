"""Packing: one picture, many questions, one pass of the decoder; many samples, one row.

Rows about the same picture share their tokens up to the question. They become one sequence:

    [shared prefix with the picture] [question 1 + answer 1] [question 2 + answer 2] ...

Each branch sees the prefix and itself, and its positions go on from the prefix's end, so every
branch gets what it would get in a sequence of its own. Targets are listed as (hidden state, token)
pairs, because the prefix's last state predicts the first token of several branches.

Such sequences, of different samples, can follow each other in one row. None sees another, and
positions start again with each, so a row holds no padding and changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from vistoken.core.tables import TOKEN, TokenKind
from vistoken.train.masks import PREFIX, Segments
from vistoken.train.prefixes import IGNORE, Row, sharable_prefix, shared_prefix

__all__ = [
    "IGNORE",
    "Packed",
    "PackedBatch",
    "Row",
    "batch_packed",
    "fit_rows",
    "join",
    "pack",
    "sharable_prefix",
    "shared_prefix",
]


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
        sample: (n,) int64, number of the sequence that a position belongs to.
        token_map: (n, K) int64, turn, role, sample and branch of every position; branches are
            numbered where there are several.
    """

    input_ids: Tensor
    position_ids: Tensor
    branch: Tensor
    sources: Tensor
    targets: Tensor
    rows: Tensor
    kinds: tuple[str, ...]
    sample: Tensor
    token_map: Tensor

    def mask(self) -> Tensor:
        """Who sees whom: (n, n) bool, True where row attends to column."""
        return Segments(self.sample[None], self.branch[None]).dense()[0, 0]


@dataclass(frozen=True)
class PackedBatch:
    """Packed sequences padded to one length.

    Attributes:
        input_ids: (B, n) int64.
        position_ids: (B, n) int64.
        segments: Who sees whom; padding sees itself only.
        sources: (M,) int64 into B * n.
        targets: (M,) int64.
        rows: (M,) int64, number of the row in the batch.
        kinds: Kind of every row.
        tokens: Positions that are not padding.
        token_map: (B, n, K) int64, a TokenMap but for what the model says of its visual tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    sources: Tensor
    targets: Tensor
    rows: Tensor
    kinds: tuple[str, ...]
    tokens: int
    token_map: Tensor


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
    branch = [PREFIX] * prefix
    role, turn = rows[0].roles[:prefix], rows[0].turns[:prefix]
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
        role += row.roles[prefix:]
        turn += row.turns[prefix:]
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
        torch.zeros(len(ids), dtype=torch.int64),
        TOKEN.make(len(ids), role=role, turn=turn, branch=branch if len(rows) > 1 else PREFIX),
    )


def join(sequences: Sequence[Packed]) -> Packed:
    """Put packed sequences one behind the other; none sees another, each has its own positions."""
    if len(sequences) == 1:
        return sequences[0]
    starts = [0, *accumulate(len(sequence.input_ids) for sequence in sequences)]
    firsts = [0, *accumulate(len(sequence.kinds) for sequence in sequences)]
    samples = [0, *accumulate(int(sequence.sample[-1]) + 1 for sequence in sequences)]
    sample = torch.cat([s.sample + first for s, first in zip(sequences, samples, strict=False)])
    return Packed(
        torch.cat([sequence.input_ids for sequence in sequences]),
        torch.cat([sequence.position_ids for sequence in sequences]),
        torch.cat([sequence.branch for sequence in sequences]),
        torch.cat([s.sources + start for s, start in zip(sequences, starts, strict=False)]),
        torch.cat([sequence.targets for sequence in sequences]),
        torch.cat([s.rows + first for s, first in zip(sequences, firsts, strict=False)]),
        tuple(kind for sequence in sequences for kind in sequence.kinds),
        sample,
        TOKEN.set(torch.cat([sequence.token_map for sequence in sequences]), sample=sample),
    )


def fit_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Distribute sequences over few rows: the longest first, each into the first row with room.

    Args:
        lengths: Tokens of each sequence.
        budget: Most tokens of a row; a single longer sequence makes a row of its own.

    Returns:
        Numbers of the sequences of each row, ascending within a row, rows by their first one.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        fitting = (place for place, left in enumerate(room) if left >= lengths[number])
        place = next(fitting, len(rows))
        if place == len(rows):
            rows.append([])
            room.append(budget)
        rows[place].append(number)
        room[place] -= lengths[number]
    return sorted(sorted(row) for row in rows)


def batch_packed(samples: Sequence[Packed], pad_id: int) -> PackedBatch:
    """Pad packed sequences on the right to one length."""
    length = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), length), pad_id)
    positions = torch.zeros(len(samples), length, dtype=torch.int64)
    branch = torch.full((len(samples), length), PREFIX)
    # padding attends to itself: a row without any column would be NaN
    sample_of = (-1 - torch.arange(length)).repeat(len(samples), 1)
    token_map = TOKEN.make(len(samples) * length, kind=TokenKind.PAD)
    token_map = token_map.unflatten(0, (len(samples), length))
    sources, targets, owners = [], [], []
    kinds: list[str] = []
    for number, sample in enumerate(samples):
        n = len(sample.input_ids)
        ids[number, :n] = sample.input_ids
        positions[number, :n] = sample.position_ids
        branch[number, :n] = sample.branch
        sample_of[number, :n] = sample.sample
        token_map[number, :n] = sample.token_map
        sources.append(sample.sources + number * length)
        targets.append(sample.targets)
        owners.append(sample.rows + len(kinds))
        kinds += sample.kinds
    return PackedBatch(
        ids,
        positions,
        Segments(sample_of, branch),
        torch.cat(sources),
        torch.cat(targets),
        torch.cat(owners),
        tuple(kinds),
        sum(len(sample.input_ids) for sample in samples),
        token_map,
    )
