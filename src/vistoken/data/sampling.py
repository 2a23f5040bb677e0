"""The order of samples: one modality per step, similar lengths side by side.

Source: the modality- and length-grouped sampler of the LLaVA-1.5 recipe, behaviour only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from vistoken.core.errors import DataError, UsageError
from vistoken.data.messages import Message

Numbers = NDArray[np.int32]


def modality_length(messages: Sequence[Message]) -> int:
    """Length of a conversation for grouping.

    Args:
        messages: The conversation, as `read_messages` returns it.

    Returns:
        Number of words over all turns, at least 1; negative without a picture.
    """
    words = 0
    pictures = False
    for message in messages:
        for part in message["content"]:
            if part["type"] == "text":
                words += len(part["text"].split())
            else:
                pictures = pictures or part["type"] != "box"
                # The released count is over the text, where the mark is a word of its own.
                words += 1
    words = max(words, 1)
    return words if pictures else -words


def group_by_length(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None
) -> list[int]:
    """Shuffle samples, then lay those of similar length side by side.

    Args:
        lengths: One length per sample.
        batch_size: Samples of a micro-batch.
        world_size: Data-parallel processes times accumulated micro-batches.
        generator: Source of randomness on the CPU; the global one when None.

    Returns:
        Every index once. Each run of `batch_size` x `world_size` holds samples that were shuffled
        together, dealt so that the micro-batches have about the same total length.
    """
    order: list[int] = _by_length(np.asarray(lengths), batch_size, world_size, generator).tolist()
    return order


def group_by_modality_and_length(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None
) -> list[int]:
    """As :func:`group_by_length`, with steps that hold only pictures or only text.

    The last, incomplete step of either kind is put off to the end, where the two stand together.

    Args:
        lengths: One length per sample, negative for a sample without a picture.
        batch_size: Samples of a micro-batch.
        world_size: Data-parallel processes times accumulated micro-batches.
        generator: Source of randomness on the CPU; the global one when None.

    Returns:
        Every index once.

    Raises:
        DataError: A length is 0, which says neither picture nor text.
        UsageError: `batch_size` or `world_size` is below 1.
    """
    order: list[int] = _by_modality(np.asarray(lengths), batch_size, world_size, generator).tolist()
    return order


class ShuffledSampler(Sampler[int]):
    """Indices for a data loader in random order, the same for a seed and an epoch everywhere.

    The order is an array of four bytes per sample, where PyTorch's own sampler makes a list of
    about nine times that.

    Args:
        count: Number of samples.
        seed: Seed of epoch 0; every further epoch adds one.
        start: Number of indices of the first epoch to leave out, for resuming.
    """

    def __init__(self, count: int, seed: int = 0, start: int = 0) -> None:
        self.count = count
        self.seed = seed
        self.start = start
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; its order starts at the first index again.

        Args:
            epoch: Number of the epoch, from 0.
        """
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """What :meth:`load_state_dict` needs to go on in this epoch."""
        return {"seed": self.seed, "epoch": self.epoch, "start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another sampler was.

        Args:
            state: From :meth:`state_dict`; `start` is the number of indices already used.

        Raises:
            UsageError: The seed differs, so the order would be another one.
        """
        if state["seed"] != self.seed:
            raise UsageError(
                f"the data order was made with seed {state['seed']}, this run has {self.seed};"
                " resume with the same seed"
            )
        self.epoch, self.start = int(state["epoch"]), int(state["start"])

    def __len__(self) -> int:
        return self.count - self.start

    def __iter__(self) -> Iterator[int]:
        return map(int, self._order()[self.start :])

    def _order(self) -> Numbers:
        """Every index once, in the order of this epoch."""
        return _shuffled(self.count, self._generator())

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + self.epoch)


class ModalityLengthSampler(ShuffledSampler):
    """A :class:`ShuffledSampler` whose steps hold one modality and similar lengths.

    Args:
        lengths: One length per sample, negative without a picture; see :func:`modality_length`.
        batch_size: Samples of a micro-batch.
        world_size: Data-parallel processes times accumulated micro-batches.
        seed: Seed of epoch 0; every further epoch adds one.
        start: Number of indices of the first epoch to leave out, for resuming.

    Raises:
        DataError: A length is 0.
        UsageError: A size is below 1.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Numbers,
        batch_size: int,
        world_size: int = 1,
        seed: int = 0,
        start: int = 0,
    ) -> None:
        super().__init__(len(lengths), seed, start)
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.world_size = world_size
        # refuse bad values before training starts
        _check_sizes(batch_size, world_size)
        _check_lengths(self.lengths)

    def _order(self) -> Numbers:
        return _by_modality(self.lengths, self.batch_size, self.world_size, self._generator())


def _shuffled(count: int, generator: torch.Generator | None) -> Numbers:
    order: Numbers = torch.randperm(count, generator=generator, dtype=torch.int32).numpy()
    return order


def _check_sizes(batch_size: int, world_size: int) -> None:
    if batch_size < 1 or world_size < 1:
        raise UsageError(
            f"batch_size {batch_size} and world_size {world_size} must both be 1 or more"
        )


def _check_lengths(lengths: NDArray[Any]) -> None:
    if (lengths == 0).any():
        raise DataError(
            f"sample {int(np.argmax(lengths == 0))} has length 0, so its modality is unknown;"
            " give it its number of words, negative without a picture"
        )


def _by_length(
    lengths: NDArray[Any], batch_size: int, world_size: int, generator: torch.Generator | None
) -> Numbers:
    """See :func:`group_by_length`; arrays, because a list of a million numbers is large."""
    order = _shuffled(len(lengths), generator)
    size = batch_size * world_size
    for start in range(0, len(order), size):
        step = order[start : start + size].tolist()
        step.sort(key=lambda index: lengths[index], reverse=True)
        order[start : start + size] = [n for hand in _deal(step, lengths, world_size) for n in hand]
    return order


def _by_modality(
    lengths: NDArray[Any], batch_size: int, world_size: int, generator: torch.Generator | None
) -> Numbers:
    """See :func:`group_by_modality_and_length`."""
    _check_sizes(batch_size, world_size)
    _check_lengths(lengths)
    kinds = [np.flatnonzero(kind).astype(np.int32) for kind in (lengths > 0, lengths < 0)]
    if not all(map(len, kinds)):
        # Lengths of text-only data stay negative here, as in the released sampler.
        return _by_length(lengths, batch_size, world_size, generator)
    size = batch_size * world_size
    grouped = [
        members[_by_length(np.abs(lengths[members]), batch_size, world_size, generator)]
        for members in kinds
    ]
    full = [(len(members) - 1) // size for members in grouped]
    order = np.empty(len(lengths), np.int32)
    for place, step in enumerate(map(int, _shuffled(sum(full), generator))):
        members, start = (grouped[0], step) if step < full[0] else (grouped[1], step - full[0])
        order[place * size : (place + 1) * size] = members[start * size : (start + 1) * size]
    put_off = [members[count * size :] for members, count in zip(grouped, full, strict=True)]
    order[sum(full) * size :] = np.sort(np.concatenate(put_off))
    return order


def _deal(indices: Sequence[int], lengths: NDArray[Any], hands: int) -> list[list[int]]:
    """Deal sorted samples to equally many per hand, each to the hand with the least so far."""
    if len(indices) % hands:
        return [list(indices[hand::hands]) for hand in range(hands)]
    full = len(indices) // hands
    dealt: list[list[int]] = [[] for _ in range(hands)]
    totals = [0] * hands
    for index in indices:
        open_hands = [hand for hand in range(hands) if len(dealt[hand]) < full]
        hand = min(open_hands, key=lambda number: totals[number])  # the first one on a tie
        dealt[hand].append(index)
        totals[hand] += int(lengths[index])
    return dealt
