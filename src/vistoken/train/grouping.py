"""Groups of examples that share a pass of the towers, worked out on numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vistoken.train.examples import Example, Examples, Numbers
from vistoken.train.lazy import Lazy


@dataclass(frozen=True)
class QuestionGroup:
    """Rows about the same pictures, at most so many."""

    images: tuple[Path, ...]
    examples: tuple[Example, ...]


class QuestionGroups(Lazy[QuestionGroup]):
    """Groups of examples; see :func:`group_examples`.

    Args:
        examples: The examples.
        members: Their numbers, group after group.
        bounds: Where in ``members`` each group begins, and the end.
    """

    def __init__(self, examples: Examples, members: Numbers, bounds: Numbers) -> None:
        self.examples = examples
        self.members = members
        self.bounds = bounds
        words = np.abs(examples.lengths[members])
        sums = np.add.reduceat(words, bounds[:-1], dtype=np.int32)
        signs = np.sign(examples.lengths[members[bounds[:-1]]])
        self.lengths: Numbers = (sums * signs).astype(np.int32)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def item(self, index: int) -> QuestionGroup:
        """Read a group's rows."""
        members = self.members[self.bounds[index] : self.bounds[index + 1]]
        examples = tuple(self.examples[int(member)] for member in members)
        return QuestionGroup(examples[0].images, examples)

    @property
    def images(self) -> Sequence[Path]:
        """Every picture, read from the rows when asked for."""
        return _GroupPictures(self)


class _GroupPictures(Lazy[Path]):
    """Pictures of groups; one that stands in several kinds of groups comes more than once."""

    def __init__(self, groups: QuestionGroups) -> None:
        self.groups = groups
        examples = groups.examples
        first = groups.members[groups.bounds[:-1]]
        shown = first[examples.counts[first] > 0]
        _, places = np.unique(examples.keys[shown], return_index=True)
        self.rows: Numbers = shown[np.sort(places)]
        self.ends = np.cumsum(examples.counts[self.rows])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def item(self, index: int) -> Path:
        """Read the path from its row."""
        place = int(np.searchsorted(self.ends, index, side="right"))
        images = self.groups.examples[int(self.rows[place])].images
        return images[index - int(self.ends[place])]  # counted from the end of the row's own


def group_examples(examples: Examples, most: int) -> QuestionGroups:
    """Collect rows about the same pictures into groups of at most ``most``, evenly cut.

    Rows without a picture, and rows that begin with different system messages, stay apart.
    """
    return QuestionGroups(examples, *cut_groups(examples.keys, examples.counts > 0, most))


def cut_groups(
    keys: NDArray[np.uint64], shared: NDArray[np.bool_], most: int
) -> tuple[Numbers, Numbers]:
    """Collect rows of equal keys into groups of at most ``most``, evenly cut.

    Args:
        keys: One key per row.
        shared: Rows whose key counts; every other row is a group of its own.
        most: Most rows of a group.

    Returns:
        Row numbers, group after group, ascending within a group, the groups by their key's first
        row; and where in it each group begins, with the end as one more number.
    """
    alone = np.flatnonzero(~shared).astype(np.int32)
    together = np.flatnonzero(shared).astype(np.int32)
    together = together[np.argsort(keys[together], kind="stable")]
    sorted_keys = keys[together]
    opens = np.ones(len(together), dtype=np.bool_)
    opens[1:] = sorted_keys[1:] != sorted_keys[:-1]
    del sorted_keys
    begins = np.flatnonzero(opens).astype(np.int32)
    sizes = np.diff(begins, append=np.int32(len(together))).astype(np.int32)
    del opens
    # rows on their own follow those that share, each a run of one
    rows = np.concatenate([together, alone])
    begins = np.concatenate([begins, np.arange(len(together), len(rows), dtype=np.int32)])
    sizes = np.concatenate([sizes, np.ones(len(alone), dtype=np.int32)])
    order = np.argsort(rows[begins], kind="stable").astype(np.int32)
    begins, sizes = begins[order], sizes[order]
    del order, together, alone
    ends = np.cumsum(sizes, dtype=np.int32)
    shift = np.repeat(begins - (ends - sizes), sizes)
    members = rows[shift + np.arange(len(rows), dtype=np.int32)]
    del shift, rows, begins
    return members, _cut_evenly(ends - sizes, sizes, most)


def _cut_evenly(starts: Numbers, sizes: Numbers, most: int) -> Numbers:
    """Where each part begins when runs are cut into parts of at most ``most``; and the end."""
    parts = -(-sizes // most)
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), parts)
    before = (np.cumsum(parts, dtype=np.int32) - parts)[owner]
    part = np.arange(len(owner), dtype=np.int32) - before
    del before
    # a product of two counts of rows may be more than 32 bits hold
    cuts = (part.astype(np.int64) * sizes[owner] // parts[owner]).astype(np.int32)
    end = np.array([starts[-1] + sizes[-1]] if len(sizes) else [0], dtype=np.int32)
    return np.concatenate([starts[owner] + cuts, end])
