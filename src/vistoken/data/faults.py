"""What can be wrong with a sample, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from vistoken.core.errors import DataError

FaultKind = Literal[
    "json", "id", "schema", "role", "role-order", "empty", "placeholder", "image-missing",
    "image-broken", "video-missing", "unread-part", "unsupervised", "too-long", "template",
]  # fmt: skip


class SampleFault(DataError):
    """One thing wrong with one sample.

    Args:
        kind: What sort of fault it is.
        message: One sentence that names place, sample and fix.
    """

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[SampleFault], tuple[FaultKind, str]]:
        return type(self), (self.kind, str(self))


Report = Callable[[SampleFault], None]
"""Takes a fault: raises it, or keeps it and lets reading go on."""


def raise_fault(fault: SampleFault) -> None:
    """The report of a reader that stops at the first fault.

    Raises:
        SampleFault: Always.
    """
    raise fault


def schema_fault(message: str) -> SampleFault:
    """A fault of kind `schema`."""
    return SampleFault("schema", message)
