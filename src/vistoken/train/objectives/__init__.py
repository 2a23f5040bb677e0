"""What stages can optimise: registered parts, by the name that a recipe gives."""

from __future__ import annotations

from vistoken.core.errors import UsageError
from vistoken.core.objectives import Objective
from vistoken.core.registry import load_part


def find_objective(name: str) -> type[Objective]:
    """The objective of a name.

    Raises:
        UsageError: There is none (near names are suggested), or the part is no objective.
    """
    found = load_part("objective", name)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise UsageError(
            f"objective part {name!r} is not a subclass of vistoken.core.objectives.Objective"
        )
    return found


__all__ = ["find_objective"]
