"""Errors a user can act on, and the exit code that the command line gives each of them.

Every message is one sentence that names the file, field or sample at fault and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VistokenError(Exception):
    """Base of all errors that are the input's fault, not a bug of ours."""

    exit_code = 1


class UsageError(VistokenError):
    """A wrong name, option, configuration field or combination of parts (exit code 2)."""

    exit_code = 2


class DataError(VistokenError):
    """A sample, picture, message list or data file that cannot be used (exit code 3)."""

    exit_code = 3


class WeightsError(VistokenError):
    """A checkpoint that is missing, incomplete, unsafe or does not fit (exit code 4)."""

    exit_code = 4


class MachineError(VistokenError):
    """Something the environment lacks: a package, a device, memory, disk (exit code 5)."""

    exit_code = 5


class Interrupted(VistokenError):
    """Work that a signal ended, all of it saved (exit code 128 + the signal's number).

    Args:
        message: What was stopped, and how to go on.
        number: The signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest near names for a misspelt one.

    Args:
        name: What the user wrote.
        known: Every valid name.

    Returns:
        A phrase to append to an error: the near names, or all of them when none is near.
    """
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(choice) for choice in near) + "?"
    return "known: " + (", ".join(choices) if choices else "none")
