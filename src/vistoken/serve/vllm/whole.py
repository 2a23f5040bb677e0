"""A checkpoint that vLLM can read: everything in one directory, LoRA folded in."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vistoken import __version__
from vistoken.convert.resolve import resolve_model
from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.cache_dir import cache_dir
from vistoken.models.checkpoint import is_light, save_full
from vistoken.models.configuration import VistokenConfig
from vistoken.models.device import choose_device, choose_dtype
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.pipeline import PipelineSpec
from vistoken.models.recipe import load_recipe, recipe_names

Loader = Callable[..., tuple[Any, Any]]
""":func:`vistoken.api.load`, which this room may not import."""

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when what is written changes, so that copies of an older version are made again."""


def is_recipe(name: str) -> bool:
    """Whether a name means a recipe, and not a directory of that name."""
    return (name in recipe_names() and not Path(name).exists()) or (
        name.endswith((".yaml", ".yml")) and not Path(name).is_dir()
    )


def read_parts(name: str) -> tuple[VistokenConfig, PipelineSpec]:
    """Configuration and pipeline of a recipe or a model; no weights are read.

    Raises:
        UsageError: No such recipe.
        WeightsError: No such model, or one without a processor.
    """
    if is_recipe(name):
        recipe = load_recipe(name)
        config = recipe.model_config_for()
        return config, recipe.pipeline(config)
    directory = resolve_model(name)
    try:
        config = VistokenConfig.from_pretrained(directory)
        processor = VistokenImageProcessor.from_pretrained(directory)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"model {name!r} cannot be read: {first}") from error
    return config, processor.spec


def whole_checkpoint(name: str, dtype: str, load: Loader) -> Path:
    """Directory with all of a model's weights; a light checkpoint or recipe is made whole once.

    Args:
        name: As in :func:`vistoken.api.load`.
        dtype: Floating type of the copy; ``auto`` is what this machine does well. A full
            checkpoint is served as it is.
        load: Gives model and processor, LoRA folded in.

    Returns:
        The model's own directory, or its copy in the cache.
    """
    directory = None if is_recipe(name) else resolve_model(name)
    if directory is not None and not is_light(directory):
        return directory
    chosen = choose_dtype(dtype, choose_device("auto"))
    stem = name if directory is None else str(directory.resolve())
    out = cache_dir() / "whole" / f"{Path(stem).stem}-{_identity(name, directory, str(chosen))}"
    if (out / "config.json").is_file():
        return out
    logger.info("making %s whole once, in %s", name, out)
    model, processor = load(name, device="cpu", dtype=chosen)
    try:
        save_full(model, processor, out)
    except UsageError:
        # another process may have finished the same copy meanwhile
        if not (out / "config.json").is_file():
            raise
    return out


def _identity(name: str, directory: Path | None, dtype: str) -> str:
    """Names a copy by all that decides what is in it.

    The weights that a light checkpoint refers to are named in it by their digests.
    """
    said = f"{FORMAT} {__version__} {dtype}\n"
    if directory is None:
        said += load_recipe(name).model_dump_json()
    else:
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            status = path.stat()
            said += f"{path} {status.st_size} {status.st_mtime_ns}\n"
    return hashlib.sha256(said.encode()).hexdigest()[:16]
