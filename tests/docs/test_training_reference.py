"""The tables of the training settings are those of the program: names, order and defaults."""

import re
from enum import Enum
from pathlib import Path

import pytest
from pydantic import BaseModel

from vistoken.train.config import GroupConfig, LoraConfigFields, RunConfig, StageConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "training.md"
ROW = re.compile(r"^\| `(?P<field>\w+)` \| (?P<default>[^|]+) \|", re.MULTILINE)
MODELS = (RunConfig, StageConfig, GroupConfig, LoraConfigFields)


def tables() -> list[list[tuple[str, str]]]:
    parts = PAGE.read_text("utf-8").split("| Field | Default | Meaning |")[1:]
    # a table ends at the first empty line
    return [ROW.findall(part.strip("\n").partition("\n\n")[0]) for part in parts]


def written(model: type[BaseModel], name: str) -> str:
    """A field's default as the page writes it."""
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


@pytest.mark.parametrize("number", range(len(MODELS)), ids=lambda n: MODELS[n].__name__)
def test_a_table_has_every_field_with_its_default(number) -> None:
    model = MODELS[number]
    expected = [(name, written(model, name)) for name in model.model_fields]
    assert tables()[number] == expected


def test_there_are_no_other_tables() -> None:
    assert len(tables()) == len(MODELS)
