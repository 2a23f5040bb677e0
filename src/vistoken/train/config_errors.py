"""What is wrong with a run configuration, in the words in which it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from vistoken.core.errors import did_you_mean
from vistoken.train.group_settings import GroupConfig, LoraConfigFields
from vistoken.train.settings import RunConfig, StageConfig

Place = Sequence[int | str]

_LEVELS: tuple[type[BaseModel], ...] = (RunConfig, StageConfig, GroupConfig, LoraConfigFields)


def explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first fault in one phrase: the field as an override addresses it, and the fix.

    Args:
        error: What validation found.
        values: What was validated, which has the stages' names.
    """
    problem = error.errors()[0]
    place = [_stage_name(values, part) if n == 1 else part for n, part in enumerate(problem["loc"])]
    said = ".".join(str(part) for part in place)
    if problem["type"] == "extra_forbidden":
        return f"unknown field {said!r}; " + _advice(place, values)
    if problem["type"] == "missing":
        return f"field {said!r} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"field {said!r}: {message}" if said else message


def _stage_name(values: Mapping[str, Any], part: int | str) -> int | str:
    """A stage's name in place of its number; what is no number as it is."""
    stages = values.get("stages")
    if not isinstance(part, int) or not isinstance(stages, Sequence) or part >= len(stages):
        return part
    stage = stages[part]
    name = stage.get("name") if isinstance(stage, Mapping) else None
    return name if isinstance(name, str) else part


def _advice(place: Place, values: Mapping[str, Any]) -> str:
    """Where a field of this name is, or else names that come near where it was written."""
    field = str(place[-1])
    level = _level(place)
    for other, model in enumerate(_LEVELS):
        if other != level and field in model.model_fields:
            return f"did you mean {_address(place, values, other, field)!r}?"
    if level is None:
        return did_you_mean(field, [f for model in _LEVELS for f in model.model_fields])
    return did_you_mean(field, _LEVELS[level].model_fields)


def _address(place: Place, values: Mapping[str, Any], level: int, field: str) -> str:
    """How an override addresses a field of another level, as far as the place tells."""
    known = [str(part) for part in place[:-1]]
    stages = values.get("stages")
    if len(known) < 2:
        only = isinstance(stages, Sequence) and len(stages) == 1
        known = ["stages", str(_stage_name(values, 0)) if only else "<stage>"]
    if len(known) < 4:
        known = [*known[:2], "groups", "<part>"]
    prefix = ([], known[:2], known[:4], [*known[:4], "lora"])[level]
    return ".".join([*prefix, field])


def _level(place: Place) -> int | None:
    """The level of settings whose field the last element of a place would be."""
    if len(place) == 1:
        return 0
    if place[0] != "stages":
        return None
    return {3: 1, 5: 2, 6: 3}.get(len(place))
