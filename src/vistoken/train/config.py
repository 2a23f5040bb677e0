"""The configuration of a training run: one YAML file, `a.b=c` overrides, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vistoken.core.errors import UsageError
from vistoken.train.config_errors import explain
from vistoken.train.group_settings import (
    GROUP_NAMES,
    GroupConfig,
    GroupName,
    LoraConfigFields,
)
from vistoken.train.overrides import apply_overrides
from vistoken.train.settings import RunConfig, StageConfig

__all__ = [
    "GROUP_NAMES",
    "GroupConfig",
    "GroupName",
    "LoraConfigFields",
    "RunConfig",
    "StageConfig",
    "apply_overrides",
    "dump_config",
    "load_config",
    "parse_config",
    "recipe_config",
]


def parse_config(values: Mapping[str, Any], where: str = "run configuration") -> RunConfig:
    """Validate a configuration.

    Raises:
        UsageError: An unknown key (near names suggested), a missing one or a wrong value.
    """
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(f"{where}: {explain(error, values)}") from error


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML configuration and apply overrides.

    Args:
        path: The file.
        overrides: ``a.b=c`` each, the value in YAML; a list is addressed by number or, for
            stages, by name: ``stages.joint.steps=100``.

    Raises:
        UsageError: No such file, not YAML, or not a valid configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"run configuration {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"run configuration {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"run configuration {path} must be a mapping with recipe, data, output")
    return parse_config(apply_overrides(values, overrides), str(path))


def recipe_config(
    recipe: str,
    train: Mapping[str, Any] | None,
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The configuration that a recipe's ``train`` section and a user's values make.

    Args:
        recipe: Recipe name or file, stored in the configuration.
        train: The recipe's ``train`` section: any field of :class:`RunConfig`.
        values: The user's fields, such as data and output; they win.
        overrides: ``a.b=c`` each, applied last.

    Raises:
        UsageError: The recipe has no such section, or the result is not valid.
    """
    if not train:
        raise UsageError(f"recipe {recipe} has no train section; give stages in a YAML file")
    merged = {**train, "recipe": recipe, **values}
    return parse_config(apply_overrides(merged, overrides), f"recipe {recipe}")


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
