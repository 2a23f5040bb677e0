"""The README's tables name every part that a user can put into a recipe."""

from pathlib import Path

import pytest

from vistoken.core.registry import part_table

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
KINDS = ("views", "fuse", "project", "reduce", "append", "layout")


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_pipeline_is_named(kind):
    names = [name for of, name in part_table() if of == kind]
    assert names
    assert [name for name in names if f"`{name}`" not in README] == []
