"""A study's grid: every arm at every seed as a recipe of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistoken.core.errors import UsageError, did_you_mean
from vistoken.models.recipe import Recipe, load_recipe, parse_recipe
from vistoken.study.settings import Arm, Asking, Data, Size, Study, Values


@dataclass(frozen=True)
class Cell:
    """One training run of a study.

    Attributes:
        arm: Name of the arm.
        seed: Seed of weights and data order.
        recipe: What is trained, train section included.
    """

    arm: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """How a cell is named: ``arm/seed``."""
        return f"{self.arm}/{self.seed}"


@dataclass(frozen=True)
class Grid:
    """A study at one size.

    Attributes:
        study: The study.
        size_name: Name of the size.
        size: The size.
        cells: All cells: the first seed of every arm, then the second, so that a grid that is
            stopped early holds every arm.
    """

    study: Study
    size_name: str
    size: Size
    cells: tuple[Cell, ...]

    @property
    def arms(self) -> dict[str, Arm]:
        """The arms of this size."""
        names = self.size.arms or tuple(self.study.arms)
        return {name: arm for name, arm in self.study.arms.items() if name in names}

    @property
    def data(self) -> Data:
        """What this size is trained on and asked."""
        return self.size.data or self.study.data

    @property
    def asking(self) -> Asking:
        """How this size is asked."""
        return self.size.asking or self.study.asking

    def arm_recipe(self, arm: str) -> Recipe:
        """An arm's recipe at the first seed."""
        return next(cell.recipe for cell in self.cells if cell.arm == arm)

    def only(self, names: Sequence[str]) -> list[Cell]:
        """Cells by name: ``arm/seed``, or ``arm`` for all its seeds; all cells without a name.

        Raises:
            UsageError: No cell has that name.
        """
        if not names:
            return list(self.cells)
        known = [cell.name for cell in self.cells]
        for name in names:
            if name not in known and name not in self.arms:
                raise UsageError(
                    f"--only {name}: no such cell; {did_you_mean(name, [*self.arms, *known])}"
                )
        return [cell for cell in self.cells if cell.name in names or cell.arm in names]


def make_grid(study: Study, size_name: str | None = None, changes: Values | None = None) -> Grid:
    """Work out every cell of a study.

    Args:
        study: The study.
        size_name: Size; the first one when None.
        changes: Changes of the recipe that come last, for all arms.

    Raises:
        UsageError: A change that does not fit the recipe, or arms that would not be trained alike.
    """
    name, size = study.size(size_name)
    base = load_recipe(size.recipe).model_dump(exclude_none=True)
    cells = []
    for seed in study.seeds:
        for arm_name, arm in study.arms.items():
            if arm_name not in (size.arms or study.arms):
                continue
            values = _recipe_values(base, size, arm, changes or {}, f"arm {arm_name}")
            values |= {"name": f"{study.name}-{arm_name}", "seed": seed}
            cells.append(Cell(arm_name, seed, parse_recipe(values, f"arm {arm_name}")))
    grid = Grid(study, name, size, tuple(cells))
    _check_alike(grid)
    return grid


def with_values(values: dict[str, Any], changes: Values, where: str) -> dict[str, Any]:
    """A copy of nested plain values with dotted paths set.

    A list is addressed by number or by the ``name`` (or ``part``) of its entries. As the last
    step, its length as the number adds an entry at its end, and ``+entry`` one before that entry.

    Raises:
        UsageError: A path that leads nowhere.
    """
    result: dict[str, Any] = json.loads(json.dumps(values))
    for path, value in changes.items():
        *places, last = path.split(".")
        target: Any = result
        for place in places:
            if isinstance(target, dict):
                target = target.setdefault(place, {})
            else:
                target = target[_position(target, place, path, where)]
            if not isinstance(target, dict | list):
                raise UsageError(f"{where}: {path}: {place!r} is a value, it has no fields")
        if isinstance(target, list):
            if last == str(len(target)):
                target.append(value)
            elif last.startswith("+"):
                target.insert(_position(target, last[1:], path, where), value)
            else:
                target[_position(target, last, path, where)] = value
        else:
            target[last] = value
    return result


def fingerprint(values: Any) -> str:
    """Digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _recipe_values(
    base: dict[str, Any], size: Size, arm: Arm, changes: Values, where: str
) -> dict[str, Any]:
    values = base
    for step in (size.set, arm.set, changes):
        values = with_values(values, step, where)
    return values


def _position(target: list[Any], place: str, path: str, where: str) -> int:
    names = [
        item if isinstance(item, str) else item.get("name") or item.get("part") for item in target
    ]
    if place in names:
        return names.index(place)
    if place.isdigit() and int(place) < len(target):
        return int(place)
    known = [name for name in names if isinstance(name, str)]
    raise UsageError(f"{where}: {path}: no entry {place!r}; {did_you_mean(place, known)}")


_ALIKE = ("steps", "epochs", "images_per_step", "accumulate", "questions_per_image", "template")


def _check_alike(grid: Grid) -> None:
    """Refuse arms with other schedules, schedules that end by the clock, unsharable stages."""
    _check_shared(grid)
    schedules = {}
    for cell in grid.cells:
        stages = (cell.recipe.train or {}).get("stages")
        if not stages:
            raise UsageError(f"arm {cell.arm}: the recipe has no train section with stages")
        if any(stage.get("minutes") for stage in stages):
            raise UsageError(
                f"arm {cell.arm}: a stage that ends by the clock gives every arm other steps; set "
                "train.stages.NAME.minutes to null and give steps"
            )
        schedules[cell.arm] = [
            {"name": stage["name"], **{key: stage.get(key) for key in _ALIKE}} for stage in stages
        ]
    for arm, schedule in schedules.items():
        if schedule != schedules[grid.study.baseline]:
            raise UsageError(
                f"arm {arm} is trained in other steps than {grid.study.baseline}; stages, steps "
                "and batches must be equal in all arms"
            )


def _check_shared(grid: Grid) -> None:
    """Shared stages come first and train what all arms have, all but the last stage at most."""
    shared = list(grid.study.shared)
    for cell in grid.cells:
        stages = (cell.recipe.train or {}).get("stages") or []
        first = [stage["name"] for stage in stages[: len(shared)]]
        if shared and (first != shared or len(stages) == len(shared)):
            raise UsageError(
                f"arm {cell.arm}: the shared stages {', '.join(shared)} must be its first ones, "
                "and others must follow"
            )
        for stage in stages[: len(shared)]:
            trained = [n for n, g in stage["groups"].items() if g.get("train") != "frozen"]
            if trained != ["connector"]:
                raise UsageError(
                    f"arm {cell.arm}: the shared stage {stage['name']} trains "
                    f"{', '.join(trained)}; only the group connector is the same in every arm"
                )
