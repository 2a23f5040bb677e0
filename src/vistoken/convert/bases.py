"""The language model and the vision tower that a release leaves out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from vistoken.convert.accounting import Ledger, file_of, language_target, tower_target
from vistoken.convert.official_config import base_mismatch
from vistoken.convert.pickles import TensorStore, find_weights, read_files
from vistoken.convert.release import Release, Role, normalise, read_json, role_of
from vistoken.convert.sources import locate_source
from vistoken.core.errors import WeightsError


def find_base(release: Release, given: str | Path | None) -> Path:
    """Directory of the language model that a release builds on."""
    named = base_name(release.config, release.adapter_config)
    return locate_source(release.directory, named, given, "language model", "--base")


def base_name(config: dict[str, Any], adapter_config: dict[str, Any]) -> str | None:
    """What a release calls the language model it builds on."""
    named: str | None = adapter_config.get("base_model_name_or_path")
    return named or config.get("_name_or_path")


def read_base_config(release: Release, base: Path) -> dict[str, Any]:
    """The base's config, checked against the release's, with the release's context length.

    Raises:
        WeightsError: It is another model than the release was trained on.
    """
    own = read_json(base / "config.json")
    rows = _resized_rows(release, bool(own.get("tie_word_embeddings")))
    own_rows = set() if rows is None else {"vocab_size"}
    released = {name: value for name, value in release.config.items() if name not in own_rows}
    mismatch = base_mismatch(released, own)
    if mismatch:
        raise WeightsError(
            f"{base} is not the language model of {release.directory}: {mismatch}; "
            "name the right one with --base"
        )
    values: dict[str, Any] = _read_config(base).to_dict()
    values.pop("_name_or_path", None)
    if rows is not None:
        values["vocab_size"] = rows
    length = release.config.get("max_position_embeddings")
    return values if length is None else {**values, "max_position_embeddings": length}


def _resized_rows(release: Release, is_tied: bool) -> int | None:
    """Rows of the token embeddings that a release brings along; None when it uses its base's."""
    found = {normalise(key): tensor.shape[0] for key, tensor in release.weights.items()}
    rows = found.get("embed_tokens.weight")
    return rows if is_tied or "lm_head.weight" in found else None


def read_tower_config(directory: Path) -> PreTrainedConfig:
    """Config of a vision tower, also when the directory holds a two-tower model such as CLIP."""
    config = _read_config(directory)
    if "vision_config" not in config.sub_configs:
        return config
    inner: PreTrainedConfig = config.vision_config
    return inner


def place_base(ledger: Ledger, directory: Path, config: Any, replaced: Collection[str]) -> None:
    """Put a language model's tensors in their places, all of them.

    Args:
        ledger: Gets the tensors.
        directory: The language model.
        config: Our model's config.
        replaced: Our names of tensors that the release has in place of these.

    Raises:
        WeightsError: A tensor is missing, unexpected or misshapen.
    """
    store = _read_model(directory, "--base")
    for key in store:
        derived = role_of(key.removeprefix("model.")) is Role.DERIVED
        if not derived and language_target(key) not in replaced:
            ledger.place(store, key, language_target(key), Role.LANGUAGE_MODEL)
    names = [name for name in language_names(ledger.shapes) if name not in replaced]
    wanted = [name for name in names if not is_tied(name, config)]
    ledger.require(wanted, file_of(directory, store), {})
    ledger.check(f"{directory} is not the language model", "name the right one with --base")


def place_tower(ledger: Ledger, directory: Path) -> None:
    """Put a vision tower's tensors in their places, all of them.

    Raises:
        WeightsError: A tensor is missing or misshapen.
    """
    store = _read_model(directory, "--vision-tower")
    for key in store:
        target = tower_target(key, ledger.shapes)
        # a two-tower model brings its text half along
        if target in ledger.shapes:
            ledger.place(store, key, target, Role.VISION_TOWER)
    wanted = [name for name in ledger.shapes if name.startswith("model.vision_tower.")]
    ledger.require(wanted, file_of(directory, store), {})
    ledger.check(f"{directory} is not the vision tower", "name the right one with --vision-tower")


def language_names(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Our names of the language model's tensors."""
    return [n for n in shapes if n.startswith("model.language_model.") or n == "lm_head.weight"]


def is_tied(name: str, config: Any) -> bool:
    """Whether a tensor is the twin of another one, which checkpoints leave out."""
    return name == "lm_head.weight" and bool(config.tie_word_embeddings)


def _read_config(directory: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"{directory}/config.json cannot be read: {first}") from error
    return config


def _read_model(directory: Path, option: str) -> TensorStore:
    for stem in ("model", "pytorch_model"):
        found = find_weights(directory, stem)
        if found is not None:
            return read_files([found])
    raise WeightsError(f"{directory} holds no weights; name a complete model with {option}")
