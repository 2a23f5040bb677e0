"""Strict loading of checkpoints, full or light."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.build import LOADING_ERRORS, load_light
from vistoken.models.checkpoint import is_light
from vistoken.models.configuration import VistokenConfig

_HARMLESS = (
    "adapter_kwargs",
    "local_files_only",
    "low_cpu_mem_usage",
    "revision",
    "trust_remote_code",
)
"""Options that transformers always passes on, and that change nothing for a local directory."""


def load_strictly(
    load: Callable[..., Any], source: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Load a checkpoint; transformers only warns of missing tensors, here they are errors.

    Args:
        load: ``PreTrainedModel.from_pretrained`` of the model class.
        source: Directory or hub id.
        args: Positional arguments for ``load``.
        kwargs: Keyword arguments for ``load``.

    Raises:
        WeightsError: The checkpoint lacks tensors, holds unknown ones, or cannot be read.
        UsageError: An option that a light checkpoint cannot honour.
    """
    directory = Path(str(source))
    if directory.is_dir() and is_light(directory):
        return _load_light(directory, dict(kwargs))
    wants_report = kwargs.pop("output_loading_info", False)
    try:
        model, report = load(source, *args, output_loading_info=True, **kwargs)
    except LOADING_ERRORS as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"checkpoint {source} cannot be loaded: {first}") from error
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [f"{name} is unexpected" for name in sorted(report["unexpected_keys"])]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"checkpoint {source} does not fit its config: {'; '.join(problems[:5])}{more}"
        )
    return (model, report) if wants_report else model


def _load_light(directory: Path, kwargs: dict[str, Any]) -> Any:
    dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    config = kwargs.pop("config", None) or VistokenConfig.from_pretrained(directory)
    for harmless in _HARMLESS:
        kwargs.pop(harmless, None)
    if kwargs.pop("device_map", None) is not None or kwargs:
        named = ", ".join(kwargs) or "device_map"
        raise UsageError(
            f"light checkpoint {directory} cannot be loaded with {named}; make it full first: "
            f"vistoken merge {directory} OUT"
        )
    if dtype in (None, "auto"):
        dtype = torch.float32
    model = load_light(directory, config, dtype)
    model.name_or_path = str(directory)
    return model
