"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar, overload

from torch.utils.data import Dataset

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence that makes its items when asked for."""

    @abstractmethod
    def item(self, index: int) -> T:
        """The item at an index from 0 on, within range."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        """An item, made now."""
        places = range(len(self))[index]
        return self.item(places) if isinstance(places, int) else [self.item(n) for n in places]


class Items(Dataset[Any]):
    """A sequence as a map-style data set."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]
