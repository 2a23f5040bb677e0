"""Strict loading of checkpoints, full or light."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.backbone import VistokenModel
from vistoken.models.build import LOADING_ERRORS, load_light
from vistoken.models.checkpoint import is_light
from vistoken.models.configuration import VistokenConfig
from vistoken.models.device import choose_dtype
from vistoken.models.references import REFERENCES

_HARMLESS = (
    "adapter_kwargs",
    "cache_dir",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "revision",
    "token",
    "trust_remote_code",
    "use_safetensors",
)
"""Options that transformers passes on, and that change nothing for files that are here."""

_HEAD = "lm_head.weight"


def load_strictly(
    model_class: type,
    load: Callable[..., Any],
    source: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Load a checkpoint; transformers only warns of missing tensors, here they are errors.

    Args:
        model_class: The class that is loaded; the headless one does without the head.
        load: ``PreTrainedModel.from_pretrained`` of that class.
        source: Directory or hub id.
        args: Positional arguments for ``load``.
        kwargs: Keyword arguments for ``load``.

    Raises:
        WeightsError: The checkpoint lacks tensors, holds unknown ones, or cannot be read.
        UsageError: An option that a light checkpoint cannot honour.
    """
    wants_report = kwargs.pop("output_loading_info", False)
    light = _light_directory(source, kwargs)
    if light is not None:
        model = _load_light(light, dict(kwargs))
        model = model.model if issubclass(model_class, VistokenModel) else model
        return (model, _complete_report()) if wants_report else model
    try:
        model, report = load(source, *args, output_loading_info=True, **kwargs)
    except LOADING_ERRORS as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"checkpoint {source} cannot be loaded: {first}") from error
    headless = issubclass(model_class, VistokenModel)
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [
        f"{name} is unexpected"
        for name in sorted(report["unexpected_keys"])
        if not (headless and name == _HEAD)
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"checkpoint {source} does not fit its config: {'; '.join(problems[:5])}{more}"
        )
    return (model, report) if wants_report else model


def _light_directory(source: Any, kwargs: dict[str, Any]) -> Path | None:
    """The directory of a light checkpoint, local or in the hub's cache; None for other sources."""
    directory = Path(str(source))
    if directory.is_dir():
        return directory if is_light(directory) else None
    named = {k: kwargs[k] for k in ("cache_dir", "revision", "local_files_only") if k in kwargs}
    try:
        found = cached_file(
            str(source), REFERENCES, _raise_exceptions_for_missing_entries=False, **named
        )
    except LOADING_ERRORS:
        return None  # not on the hub either: the ordinary loader says what is wrong
    return Path(found).parent if found else None


def _load_light(directory: Path, kwargs: dict[str, Any]) -> Any:
    dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    device = _single_device(directory, kwargs.pop("device_map", None))
    config = kwargs.pop("config", None) or VistokenConfig.from_pretrained(directory)
    for harmless in _HARMLESS:
        kwargs.pop(harmless, None)
    if kwargs:
        raise UsageError(
            f"light checkpoint {directory} cannot be loaded with {', '.join(kwargs)}; make it "
            f"full first: vistoken merge {directory} OUT"
        )
    chosen = choose_dtype("auto" if dtype is None else dtype, torch.device("cpu"))
    model = load_light(directory, config, chosen).to(device)
    model.name_or_path = str(directory)
    return model


def _single_device(directory: Path, device_map: Any) -> torch.device:
    """The one device of a device map; ``auto`` is CUDA when there is one."""
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"light checkpoint {directory} goes to one device, not to {device_map!r}; make it "
            f"full first: vistoken merge {directory} OUT"
        ) from error


def _complete_report() -> dict[str, Any]:
    return {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
