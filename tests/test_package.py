"""The package's front door: light to import, honest about what it lacks."""

import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

import vistoken

HEAVY = ("torch", "transformers", "numpy", "PIL", "peft")


def modules_after(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after a statement."""
    result = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(result.stdout.split())


def test_import_is_light() -> None:
    loaded = modules_after("import vistoken")
    assert "vistoken" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_command_line_is_light() -> None:
    loaded = modules_after("import vistoken.cli.main")
    assert "vistoken.cli.main" in loaded
    assert loaded.isdisjoint({"torch", "transformers"})


def test_public_names_resolve() -> None:
    assert callable(vistoken.load)
    assert callable(vistoken.encode_images)
    assert set(vistoken.__all__) <= set(dir(vistoken))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'missing_name'"):
        _ = vistoken.missing_name


def test_version_is_the_installed_one() -> None:
    assert version("vistoken") == vistoken.__version__


def test_house_publishes_its_part_table() -> None:
    assert [point.value for point in entry_points(group="vistoken.parts", name="house")] == [
        "vistoken.systems:PARTS"
    ]
