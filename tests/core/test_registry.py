"""The part table: exact names, lazy imports, clear refusals."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from vistoken.core import registry
from vistoken.core.errors import UsageError, did_you_mean
from vistoken.core.parts import PartFlags
from vistoken.core.registry import PartEntry, load_part, make_config, part_table


@pytest.fixture
def published(monkeypatch):
    """Publish part tables as third parties would; returns the function that does it."""

    def publish(*tables):
        class Point:
            def __init__(self, table):
                self.value, self._table = "third.party:PARTS", table

            def load(self):
                return self._table

        monkeypatch.setattr(registry, "entry_points", lambda group: [Point(t) for t in tables])
        part_table.cache_clear()

    yield publish
    monkeypatch.undo()
    part_table.cache_clear()


@pytest.mark.parametrize(
    "entry",
    sorted(part_table().values(), key=lambda e: (e.kind, e.name)),
    ids=lambda e: f"{e.kind}-{e.name}",
)
def test_every_registered_part_loads_and_declares_itself(entry):
    part = load_part(entry.kind, entry.name)
    assert entry.summary, "vistoken list shows this line"
    if entry.kind in ("views", "fuse", "project", "reduce", "append", "layout", "mechanism"):
        assert isinstance(part.flags, PartFlags)
        assert part.config_class.__dataclass_params__.frozen


def test_unknown_names_suggest_near_ones():
    with pytest.raises(UsageError, match="did you mean 'llava-sp'"):
        load_part("project", "llava_sp")
    assert "known: a, b" in did_you_mean("zzz", ["b", "a"])


def test_two_parts_cannot_share_a_name(published):
    ours = PartEntry("views", "mine", "a:b")
    published([ours], [ours])
    assert part_table()["views", "mine"] == ours
    published([ours], [PartEntry("views", "mine", "c:d")])
    with pytest.raises(UsageError, match="two packages register the views part 'mine'"):
        part_table()


def test_an_unknown_kind_is_refused(published):
    published([PartEntry("vews", "mine", "a:b")])
    with pytest.raises(UsageError, match="did you mean 'views'"):
        part_table()


def test_a_part_is_imported_only_when_named(published):
    published([PartEntry("views", "broken", "no.such.module:Part")])
    assert ("views", "broken") in part_table()
    with pytest.raises(ModuleNotFoundError):
        load_part("views", "broken")


@dataclass(frozen=True)
class Config:
    size: int = 1

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be positive, got {self.size}")


def test_options_become_a_config():
    assert make_config(Config, {"size": 3}, "part").size == 3
    with pytest.raises(UsageError, match="part has no option 'sise': did you mean 'size'"):
        make_config(Config, {"sise": 3}, "part")
    with pytest.raises(UsageError, match="part: size must be positive"):
        make_config(Config, {"size": 0}, "part")


def test_core_needs_torch_only():
    names = ["tables", "parts", "registry", "errors"]
    sources = [importlib.import_module(f"vistoken.core.{name}").__file__ for name in names]
    for source in sources:
        text = Path(source).read_text(encoding="utf-8")
        assert "transformers" not in "\n".join(x for x in text.splitlines() if "import" in x)
