"""From what a user calls a model to its parts, as far as a verb needs them."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vistoken.cli.console import Quantization, note
from vistoken.core.errors import UsageError, WeightsError, did_you_mean

if TYPE_CHECKING:
    from vistoken.models import (
        VistokenConfig,
        VistokenForConditionalGeneration,
        VistokenImageProcessor,
        VistokenProcessor,
    )

_NANO = "nano"
_CONFIG = "config.json"


def is_recipe(name: str) -> bool:
    """Whether a name means a recipe: one of the package's, or a YAML file."""
    from vistoken.models.recipe import recipe_names

    return name.endswith((".yaml", ".yml")) or (name in recipe_names() and not Path(name).exists())


def check_model(name: str) -> None:
    """Refuse a name that can be neither recipe nor directory nor hub id.

    Raises:
        UsageError: The message suggests near recipe names.
        WeightsError: A directory that is not a checkpoint.
    """
    from vistoken.models.recipe import recipe_names

    if is_recipe(name):
        return
    path = Path(name)
    if path.is_dir():
        if not (path / _CONFIG).is_file():
            raise WeightsError(f"{name} has no {_CONFIG}; {where_instead(path)}")
        return
    if path.exists():
        raise UsageError(f"model {name} is a file; name a recipe, a directory or a hub id")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_path:
        near = did_you_mean(path.name, recipe_names())
        raise UsageError(f"model {name!r} is neither a recipe nor a directory; {near}")


def read_config(name: str) -> VistokenConfig:
    """The configuration of a recipe, a checkpoint directory or a hub id; no weights are read."""
    from vistoken.models import VistokenConfig
    from vistoken.models.recipe import load_recipe

    check_model(name)
    if is_recipe(name):
        return load_recipe(name).model_config_for()
    try:
        values, _ = VistokenConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    if values.get("model_type") != VistokenConfig.model_type:
        raise WeightsError(
            f"{name} is a {values.get('model_type', 'foreign')} checkpoint, not one of vistoken's; "
            f"convert it first, see 'vistoken convert --help' and 'vistoken inspect checkpoint'"
        )
    return VistokenConfig.from_dict(values)


def read_image_processor(name: str) -> VistokenImageProcessor:
    """The image processor of a recipe, a checkpoint directory or a hub id."""
    from vistoken.models import VistokenImageProcessor
    from vistoken.models.recipe import load_recipe

    config = read_config(name)
    if is_recipe(name):
        return VistokenImageProcessor(load_recipe(name).pipeline(config).to_dict())
    try:
        return VistokenImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def read_processor(name: str) -> VistokenProcessor:
    """The processor of a recipe, a checkpoint directory or a hub id; no weights are read."""
    from vistoken.models import VistokenProcessor
    from vistoken.models.build import make_processor
    from vistoken.models.recipe import load_recipe

    config = read_config(name)
    if is_recipe(name):
        recipe = load_recipe(name)
        return make_processor(recipe, config)
    try:
        return VistokenProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def where_instead(directory: Path) -> str:
    """Which directory to name instead of one that is no checkpoint."""
    inner = directory / "model"
    if (inner / _CONFIG).is_file():
        return f"it is the folder of a run, whose model is in {inner}"
    return "name the directory of a checkpoint"


def has_trained_weights(recipe_name: str) -> bool:
    """Whether a recipe's trained weights come with the package."""
    return (resources.files("vistoken") / "assets" / recipe_name / _CONFIG).is_file()


def load_model(
    name: str, device: str = "auto", dtype: str = "auto", quantization: Quantization | None = None
) -> tuple[VistokenForConditionalGeneration, VistokenProcessor]:
    """Load a model as :func:`vistoken.api.load` does, saying what is fetched first."""
    from vistoken.api import load
    from vistoken.convert.nano_parts import ensure_nano_parts

    check_model(name)
    if name == _NANO and is_recipe(name) and has_trained_weights(name):
        ensure_nano_parts(note)
    return load(name, device=device, dtype=dtype, quantization=quantization)


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; WeightsError names a missing or damaged file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); fetch or save it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} must hold a JSON object; fetch or save it again")
    return values


def _unreadable(name: str, error: Exception) -> WeightsError:
    first = str(error).strip().splitlines()[0]
    return WeightsError(f"model {name!r} cannot be read: {first}")
