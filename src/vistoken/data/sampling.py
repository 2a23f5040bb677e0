"""The order of samples: one modality per step, similar lengths side by side.

Source: the modality- and length-grouped sampler of the LLaVA-1.5 recipe, behaviour only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from vistoken.core.errors import DataError, UsageError
from vistoken.data.messages import Message


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
                pictures = True
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
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    for step in _cut(shuffled, batch_size * world_size):
        step.sort(key=lambda index: lengths[index], reverse=True)
        for batch in _deal(step, lengths, world_size):
            order += batch
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
    if batch_size < 1 or world_size < 1:
        raise UsageError(
            f"batch_size {batch_size} and world_size {world_size} must both be 1 or more"
        )
    if 0 in lengths:
        raise DataError(
            f"sample {list(lengths).index(0)} has length 0, so its modality is unknown;"
            " give it its number of words, negative without a picture"
        )
    with_picture = [index for index, length in enumerate(lengths) if length > 0]
    text_only = [index for index, length in enumerate(lengths) if length < 0]
    if not with_picture or not text_only:
        # Lengths of text-only data stay negative here, as in the released sampler.
        return group_by_length(lengths, batch_size, world_size, generator)
    steps: list[list[int]] = []
    put_off: list[int] = []
    for members in (with_picture, text_only):
        sizes = [abs(lengths[index]) for index in members]
        grouped = group_by_length(sizes, batch_size, world_size, generator)
        cut = _cut([members[place] for place in grouped], batch_size * world_size)
        steps += cut[:-1]
        put_off += cut[-1]
    shuffled = torch.randperm(len(steps), generator=generator).tolist()
    order = [index for place in shuffled for index in steps[place]]
    return order + sorted(put_off)


class ModalityLengthSampler(Sampler[int]):
    """Indices for a data loader, the same for a seed and an epoch on every machine.

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
        lengths: Sequence[int],
        batch_size: int,
        world_size: int = 1,
        seed: int = 0,
        start: int = 0,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.world_size = world_size
        self.seed = seed
        self.start = start
        self.epoch = 0
        self._order()  # refuse bad lengths before training starts

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
        return len(self.lengths) - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(self._order()[self.start :])

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return group_by_modality_and_length(
            self.lengths, self.batch_size, self.world_size, generator
        )


def _cut(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _deal(indices: Sequence[int], lengths: Sequence[int], hands: int) -> list[list[int]]:
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
        totals[hand] += lengths[index]
    return dealt
