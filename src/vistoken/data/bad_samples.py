"""What becomes of samples that cannot be used: told, counted, never replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from vistoken.core.errors import DataError

logger = logging.getLogger(__name__)

OnBadSample = Literal["error", "skip"]
Reason = Literal["bad_samples", "too_long_turns", "too_long_samples"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sample, or rounds of one, that is not used.

    Attributes:
        reason: Under which count it falls.
        sample: The sample's id, empty where it has none.
        message: One sentence with place and cause.
        count: How much it adds to the count: 1, or rounds.
    """

    reason: Reason
    sample: str
    message: str
    count: int = 1


def _nobody(left_out: LeftOut) -> None:
    pass


@dataclass
class BadSamples:
    """What to do with samples that cannot be used, and how many there were.

    Args:
        policy: `error` stops at the first one; `skip` counts and reports it.
        tell: Told of every sample that is left out.

    Attributes:
        skipped: Number of samples skipped.
        first: Messages of the first ten.
        warned: Number of samples that are used, but otherwise than they may be meant.
        first_warned: Messages of the first ten.
    """

    policy: OnBadSample = "error"
    tell: Callable[[LeftOut], None] = _nobody
    skipped: int = 0
    first: list[str] = field(default_factory=list)
    warned: int = 0
    first_warned: list[str] = field(default_factory=list)

    def take(self, error: DataError, sample: str = "") -> None:
        """Stop, or count and report a bad sample.

        Args:
            error: What is wrong with it.
            sample: Its id, as far as it is known.

        Raises:
            DataError: The error itself, with policy `error`.
        """
        if self.policy == "error":
            raise error
        self.skipped += 1
        if len(self.first) < 10:
            self.first.append(str(error))
        logger.warning("skipped a sample: %s", error)
        self.tell(LeftOut("bad_samples", sample, str(error)))

    def warn(self, messages: Sequence[str]) -> None:
        """Count a sample that has warnings; see :meth:`log_warnings`."""
        self.warned += bool(messages)
        self.first_warned += messages[: 10 - len(self.first_warned)]

    def log_warnings(self) -> None:
        """Log once how many samples had warnings, and the first one."""
        if self.warned:
            logger.warning("samples with warnings: %d; %s", self.warned, self.first_warned[0])

    @contextmanager
    def telling(self, tell: Callable[[LeftOut], None]) -> Iterator[None]:
        """Tell somebody else inside the block."""
        before, self.tell = self.tell, tell
        try:
            yield
        finally:
            self.tell = before
