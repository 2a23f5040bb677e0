"""What stages can optimise, by the name that a recipe gives."""

from __future__ import annotations

from vistoken.core.errors import UsageError, did_you_mean
from vistoken.train.objectives.base import Objective, StageItems, StepLoss
from vistoken.train.objectives.name_alignment import NameAlignment
from vistoken.train.objectives.next_token import NextToken

OBJECTIVES: dict[str, type[Objective]] = {
    "next-token": NextToken,
    "name-alignment": NameAlignment,
}


def find_objective(name: str) -> type[Objective]:
    """The objective of a name.

    Raises:
        UsageError: There is none; near names are suggested.
    """
    if name not in OBJECTIVES:
        raise UsageError(f"unknown objective {name!r}; {did_you_mean(name, list(OBJECTIVES))}")
    return OBJECTIVES[name]


__all__ = ["OBJECTIVES", "Objective", "StageItems", "StepLoss", "find_objective"]
