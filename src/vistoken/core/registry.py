"""The table of parts: names in a configuration become objects here, and nowhere else.

A part table is a sequence of :class:`PartEntry` published under the entry-point group
``vistoken.parts``; ours is ``vistoken.systems:PARTS``, third parties add their own. Names match
exactly, a part is imported only when it is named, and two parts of one kind cannot share a name.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from vistoken.core.errors import UsageError, did_you_mean

KINDS = (
    "views",
    "fuse",
    "project",
    "reduce",
    "append",
    "layout",
    "mechanism",
    "pruner",
    "objective",
    "importer",
)
"""Kinds of parts that exist so far; a kind enters with its first user."""


@dataclass(frozen=True)
class PartEntry:
    """One line of a part table.

    Args:
        kind: One of :data:`KINDS`.
        name: The kebab-case name that configurations use.
        target: Import string ``package.module:attribute`` of the part's class.
        summary: One line for ``vistoken list``.
        paper: Where it comes from.
    """

    kind: str
    name: str
    target: str
    summary: str = ""
    paper: str = ""


@cache
def part_table() -> dict[tuple[str, str], PartEntry]:
    """Collect every published part table (ours and third parties')."""
    table: dict[tuple[str, str], PartEntry] = {}
    for point in entry_points(group="vistoken.parts"):
        entries: Sequence[PartEntry] = point.load()
        for entry in entries:
            key = (entry.kind, entry.name)
            if entry.kind not in KINDS:
                raise UsageError(
                    f"part {entry.name!r} of {point.value} has unknown kind {entry.kind!r}; "
                    + did_you_mean(entry.kind, KINDS)
                )
            if key in table and table[key] != entry:
                raise UsageError(
                    f"two packages register the {entry.kind} part {entry.name!r} "
                    f"({table[key].target} and {entry.target}); uninstall one of them"
                )
            table[key] = entry
    return table


def part_names(kind: str) -> list[str]:
    """Names of every registered part of one kind, sorted."""
    return sorted(name for part_kind, name in part_table() if part_kind == kind)


def load_part(kind: str, name: str) -> Any:
    """Import the part of this kind and name.

    Raises:
        UsageError: No such part; the message suggests near names.
    """
    entry = part_table().get((kind, name))
    if entry is None:
        raise UsageError(f"unknown {kind} part {name!r}: " + did_you_mean(name, part_names(kind)))
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def make_config(config_class: type, options: dict[str, Any], where: str) -> Any:
    """Build a part's config dataclass from plain options.

    Raises:
        UsageError: An unknown option (near names suggested), or a value the part refuses.
    """
    known = [field.name for field in fields(config_class)]
    for option in options:
        if option not in known:
            raise UsageError(f"{where} has no option {option!r}: " + did_you_mean(option, known))
    try:
        return config_class(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error
