"""The gallery shows every part that shapes a picture's tokens, and tells true token counts."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from vistoken.systems import PARTS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs/scripts/gallery.py"
PAGE = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
KINDS = ("views", "fuse", "project", "reduce", "append", "layout", "mechanism")
SMALL, ALL = 60_000, 1_000_000


@pytest.fixture(scope="module")
def gallery():
    specification = importlib.util.spec_from_file_location("gallery", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["gallery"] = module  # dataclasses look for their module
    try:
        specification.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["gallery"]


def name_of(part):
    return part if isinstance(part, str) else part["part"]


def parts_of(recipe):
    """Names of the parts that a recipe plugs in."""
    named = [recipe.views, *recipe.connector, recipe.layout, *recipe.mechanisms]
    return {name_of(part) for part in named}


def test_no_system_is_missing(gallery):
    drawn = {name: parts_of(shown.read()) for name, shown in gallery.SHOWN.items()}
    assert list(drawn.keys() ^ SECTIONS.keys()) == []
    told = {
        part
        for name, parts in drawn.items()
        for part in parts
        if f"`{part}`" in SECTIONS[name].split("![")[0]
    }
    missing = {entry.name for entry in PARTS if entry.kind in KINDS} - told
    assert not missing, f"no picture in docs/gallery.md: {sorted(missing)}; see {SCRIPT.name}"


def test_every_picture_is_there_and_small(gallery):
    linked = set(re.findall(r"\(assets/gallery/([^)]+\.png)\)", PAGE))
    wanted = {f"tokens-{name}.png" for name in gallery.SHOWN} | {
        f"views-{name}.png" for name, shown in gallery.SHOWN.items() if not shown.layers
    }
    sizes = {path.name: path.stat().st_size for path in gallery.OUT.iterdir()}
    assert linked == wanted == set(sizes)
    assert all(f"-{name}.png" in section for name, section in SECTIONS.items())
    assert max(sizes.values()) < SMALL
    assert sum(sizes.values()) < ALL


def test_token_counts_are_true(gallery):
    picture = gallery.read_picture()
    for name, shown in gallery.SHOWN.items():
        tokens = gallery.image_processor(shown).token_map(picture.height, picture.width)
        assert re.findall(r": (\d+) tokens", SECTIONS[name]) == [str(len(tokens))], name
