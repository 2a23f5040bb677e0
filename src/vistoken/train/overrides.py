"""`a.b=c` assignments on nested plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vistoken.core.errors import UsageError, did_you_mean


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of nested plain values with ``a.b=c`` assignments applied."""
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(_plain(values), sort_keys=False))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UsageError(f"override {override!r} must look like stages.joint.steps=100")
        *places, last = key.split(".")
        target: Any = result
        for place in places:
            target = _step(target, place, override)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"override {override!r}: the value is not valid YAML") from error
        if isinstance(target, list):
            target[_position(target, last, override)] = value
        else:
            target[last] = _number(value)
    return result


def _step(target: Any, place: str, override: str) -> Any:
    if isinstance(target, list):
        return target[_position(target, place, override)]
    inner = target.setdefault(place, {})
    if inner is None:
        inner = target[place] = {}
    if not isinstance(inner, dict | list):
        raise UsageError(f"override {override!r}: {place!r} is a value, it has no fields")
    return inner


def _position(target: list[Any], place: str, override: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in target]
    if place in names:
        return names.index(place)
    if place.isdigit() and int(place) < len(target):
        return int(place)
    known = [name for name in names if isinstance(name, str)]
    raise UsageError(f"override {override!r}: no entry {place!r}; " + did_you_mean(place, known))


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as a text; a rate is meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
