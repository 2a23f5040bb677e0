"""README and command-line page name every verb that the program has."""

import re
from pathlib import Path

import pytest
import typer

from vistoken.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
WITH_LEAVES = {"data", "inspect", "convert"}
"""Groups whose verbs have no page of their own."""


def verbs() -> set[str]:
    """Every command as it is typed, without the program's name."""
    command = typer.main.get_command(app)
    found = set()
    for name, verb in command.commands.items():
        inner = getattr(verb, "commands", None)
        found |= {name} if inner is None else {f"{name} {leaf}" for leaf in inner}
    return found


def table_of(page: str) -> str:
    """First column of the first table of a page that lists verbs."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    start = lines.index("| Verb | Does |")
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line.split("|")[1])
    return "\n".join(rows)


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_every_verb_stands_in_the_table(page):
    rows = table_of(page).splitlines()
    for verb in sorted(verbs()):
        first, _, leaf = verb.partition(" ")
        mine = [row for row in rows if re.search(rf"`(vistoken )?{first}\b", row)]
        assert mine, f"{page} has no row for {first}"
        if leaf and first in WITH_LEAVES:
            named = " ".join(word for row in mine for word in re.findall(r"`([^`]+)`", row))
            assert leaf in named.split(), f"{page} does not name {verb}"
