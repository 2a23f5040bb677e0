"""What an official LLaVA or LLaVA-SP release directory holds, told by its files and its config.

The folder's name says nothing here. Three layouts exist: a LoRA adapter with
``non_lora_trainables.bin``; the connector alone (``mm_projector.bin``, or ``model.bin`` of
LLaVA-SP's first stage); a merged checkpoint in one file or in shards.

Source: haotian-liu/LLaVA llava/model/builder.py and train/train.py, behaviour only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vistoken.convert.pickles import TensorStore, find_weights, read_files
from vistoken.core.errors import WeightsError

ADAPTER_CONFIG = "adapter_config.json"
NON_LORA = "non_lora_trainables"
CONNECTOR_STEMS = (NON_LORA, "mm_projector", "model")
_IN_LAYER = re.compile(r"layers\.\d+\.mm_")
_OFFICIAL_FIELDS = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size", "use_mm_proj")


class ReleaseKind(StrEnum):
    """Layout of a release directory."""

    LORA = "lora"
    CONNECTOR = "connector"
    MERGED = "merged"


class Role(StrEnum):
    """What a tensor of a release belongs to."""

    CONNECTOR = "connector"
    MECHANISM = "mechanism"
    LANGUAGE_MODEL = "language model"
    VISION_TOWER = "vision tower"
    LORA = "lora"
    DERIVED = "derived"


@dataclass(frozen=True)
class Release:
    """A release directory, read but not interpreted.

    Args:
        directory: Where it is.
        kind: Its layout.
        config: Its ``config.json``.
        weights: Everything but the LoRA adapter.
        adapter: The LoRA adapter's tensors; empty without one.
        adapter_config: Its ``adapter_config.json``; empty without one.
    """

    directory: Path
    kind: ReleaseKind
    config: dict[str, Any]
    weights: TensorStore
    adapter: TensorStore
    adapter_config: dict[str, Any]


def is_official_release(directory: Path) -> bool:
    """Whether a directory's config is that of an official LLaVA or LLaVA-SP release."""
    path = directory / "config.json"
    if not path.is_file():
        return False
    config = read_json(path)
    return "vision_config" not in config and any(name in config for name in _OFFICIAL_FIELDS)


def read_release(directory: Path) -> Release:
    """Read a release directory; pickles are read without running their code.

    Raises:
        WeightsError: It is no official release, or a file is missing, unsafe or damaged.
    """
    if not directory.is_dir():
        raise WeightsError(f"{directory} is not a directory; name the release's folder")
    if not (directory / "config.json").is_file():
        raise WeightsError(f"{directory} has no config.json; fetch the whole release")
    if not is_official_release(directory):
        raise WeightsError(
            f"{directory}/config.json has no mm_vision_tower, so this is no official LLaVA or "
            "LLaVA-SP release; Hugging Face checkpoints go through: vistoken convert llava-hf"
        )
    config = read_json(directory / "config.json")
    adapter_file = find_weights(directory, "adapter_model")
    if adapter_file is not None or (directory / ADAPTER_CONFIG).is_file():
        return _read_lora(directory, config, adapter_file)
    for stem in ("model", "pytorch_model"):
        found = find_weights(directory, stem)
        if found is not None and found.name != "model.bin":
            return _read_merged(directory, config, found)
    return _read_connector(directory, config)


def normalise(key: str) -> str:
    """Strip wrappers from an official key, down to its name in the headless language model.

    ``base_model.model.model.mm_projector.0.weight`` and ``model.mm_projector.0.weight`` both
    become ``mm_projector.0.weight``; ``lm_head.weight`` keeps its name.
    """
    for prefix in ("base_model.model.", "model."):
        key = key.removeprefix(prefix)
    return key


def role_of(name: str) -> Role:
    """What a normalised key belongs to; what nothing else claims is the connector's."""
    if ".lora_" in name:
        return Role.LORA
    if name.endswith("rotary_emb.inv_freq") or name.endswith("embeddings.position_ids"):
        return Role.DERIVED
    if name.startswith("vision_tower."):
        return Role.VISION_TOWER
    if _IN_LAYER.match(name):  # no language model has parts of that prefix
        return Role.MECHANISM
    if name.startswith(("layers.", "embed_tokens.", "norm.", "lm_head.")):
        return Role.LANGUAGE_MODEL
    return Role.CONNECTOR


def tower_key(name: str) -> str:
    """A vision tower's own key from a normalised one."""
    return name.removeprefix("vision_tower.").removeprefix("vision_tower.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; WeightsError names a missing or broken file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} must hold a JSON object; fetch it again")
    return values


def _read_lora(directory: Path, config: dict[str, Any], adapter_file: Path | None) -> Release:
    if adapter_file is None:
        raise WeightsError(
            f"{directory} has {ADAPTER_CONFIG} but no adapter_model.safetensors or "
            "adapter_model.bin; fetch the whole release"
        )
    if not (directory / ADAPTER_CONFIG).is_file():
        raise WeightsError(f"{directory} has {adapter_file.name} but no {ADAPTER_CONFIG}")
    rest = find_weights(directory, NON_LORA)
    if rest is None:
        raise WeightsError(
            f"{directory} has a LoRA adapter but no {NON_LORA}.bin, where its connector would be; "
            "fetch the whole release"
        )
    return Release(
        directory,
        ReleaseKind.LORA,
        config,
        read_files([rest]),
        read_files([adapter_file]),
        read_json(directory / ADAPTER_CONFIG),
    )


def _read_connector(directory: Path, config: dict[str, Any]) -> Release:
    found = [path for stem in CONNECTOR_STEMS if (path := find_weights(directory, stem))]
    if not found:
        raise WeightsError(
            f"{directory} holds no weights: expected adapter_model with {NON_LORA}.bin, "
            "mm_projector.bin, model.bin, or a merged checkpoint"
        )
    if len(found) > 1:
        raise WeightsError(
            f"{directory} has both {found[0].name} and {found[1].name}; keep the one to convert"
        )
    weights = read_files(found)
    has_layers = any(normalise(key).startswith("layers.") for key in weights)
    kind = ReleaseKind.MERGED if has_layers else ReleaseKind.CONNECTOR
    return Release(directory, kind, config, weights, TensorStore(), {})


def _read_merged(directory: Path, config: dict[str, Any], found: Path) -> Release:
    weights = read_files([found])
    return Release(directory, ReleaseKind.MERGED, config, weights, TensorStore(), {})
