"""Results of one decoder call that depend on the identity of tensors, computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

_T = TypeVar("_T")


class CallMemo:
    """Remembers results by the tensors they were made from.

    Layers of one call mostly share their rows, masks and key tables; whoever replaces one of them
    makes a new tensor, and with it a new key. The tensors are held, so no identity is used twice.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[tuple[Tensor | None, ...], Any]] = {}

    def get(self, name: str, tensors: tuple[Tensor | None, ...], make: Callable[[], _T]) -> _T:
        """Look a result up, or make it.

        Args:
            name: What is computed, with everything that is no tensor.
            tensors: What it is computed from.
            make: Computes it.
        """
        key = (name, *(id(tensor) for tensor in tensors))
        if key not in self._known:
            self._known[key] = (tensors, make())
        result: _T = self._known[key][1]
        return result
