"""Peak memory of the loss: full logits against slices of the supervised positions.

    python benchmarks/loss_memory.py --vocabulary 128256 --positions 8192 --supervised 0.5

Counted on the meta device, so nothing is allocated: every tensor that an operation makes is counted
from its making to its release, forward and backward. With ``--device cuda`` the same is measured.
"""

from __future__ import annotations

import argparse
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vistoken.train.loss import chunk_rows, summed_cross_entropy

FULL, CHUNKED = 0, 1


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {
            id(leaf.untyped_storage())
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = id(storage), storage.nbytes()
        if key in given or key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def step(how: int, hidden: Tensor, head: nn.Module, targets: Tensor, places: Tensor) -> None:
    """One forward and backward pass of head and loss."""
    if how == FULL:  # logits everywhere, labels -100 where not supervised
        labels = torch.full((len(hidden),), -100, device=hidden.device).index_copy(
            0, places, targets
        )
        loss = F.cross_entropy(head(hidden).float(), labels, reduction="sum")
    else:
        vocabulary = head.weight.shape[0]
        loss, _ = summed_cross_entropy(head, hidden[places], targets, chunk_rows(vocabulary))
    loss.backward()


def peak_bytes(
    how: int,
    positions: int,
    vocabulary: int,
    width: int = 64,
    supervised: float = 1.0,
    device: str = "meta",
) -> int:
    """Peak bytes of one pass, beyond the states and the head that go in.

    Args:
        how: ``FULL`` or ``CHUNKED``.
        positions: Positions of the batch.
        vocabulary: Rows of the head.
        width: Width of the states; the head is frozen.
        supervised: Share of the positions with a target.
        device: ``meta`` counts, ``cuda`` measures.
    """
    count = max(int(positions * supervised), 1)
    hidden = torch.empty(positions, width, device=device, requires_grad=True)
    head = nn.Linear(width, vocabulary, bias=False, device=device).requires_grad_(False)
    targets = torch.zeros(count, dtype=torch.int64, device=device)
    places = torch.arange(count, device=device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(how, hidden, head, targets, places)
        return torch.cuda.max_memory_allocated() - before
    with PeakBytes() as counter:
        step(how, hidden, head, targets, places)
    return counter.peak


def main() -> None:
    """Compare both and write the ratio."""
    from paired import machine, write

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--supervised", type=float, default=1.0)
    parser.add_argument("--device", choices=("meta", "cuda"), default="meta")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = (options.positions, options.vocabulary, options.width, options.supervised)
    full, chunked = (peak_bytes(how, *sizes, options.device) for how in (FULL, CHUNKED))
    logits = options.positions * options.vocabulary * 4
    result = {
        "positions": options.positions,
        "vocabulary": options.vocabulary,
        "width": options.width,
        "supervised": options.supervised,
        "device": options.device,
        "full_logits_mb": round(logits / 1e6, 1),
        "full_peak_mb": round(full / 1e6, 1),
        "chunked_peak_mb": round(chunked / 1e6, 1),
        "chunked_over_full_peak": round(chunked / full, 4),
        "chunked_over_full_logits": round(chunked / logits, 4),
        "machine": machine(),
    }
    print("\n".join(f"{key}: {value}" for key, value in result.items()))
    if options.out:
        write(options.out, result)


if __name__ == "__main__":
    main()
