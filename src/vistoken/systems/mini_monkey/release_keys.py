"""How InternVL2 releases, on which Mini-Monkey builds, name their parameters."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Grid
from vistoken.core.release_keys import ReleaseKeys
from vistoken.systems.mini_monkey.internlm2 import llama_state
from vistoken.systems.mini_monkey.internvit import tower_state

OFFICIAL_KEYS = {"norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}
"""Our module of ``pixel-shuffle`` -> the official one."""

_VISION, _LANGUAGE = "vision_model.", "language_model."
_LLM = "InternLM2ForCausalLM"


class MiniMonkeyKeys(ReleaseKeys):
    """Importer of ``pixel-shuffle`` from an InternVL2 release, and of whole releases."""

    part = "pixel-shuffle"

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether these are the connector's names, and nothing else."""
        return bool(names) and all(name.startswith("mlp1.") for name in names)

    @staticmethod
    def options(tensors: Mapping[str, Tensor], grid: Grid) -> dict[str, Any]:
        """Options of ``pixel-shuffle`` that fit; releases put 2 x 2 cells into a token.

        Raises:
            WeightsError: A tensor is missing, or the widths belong to another connector.
        """
        wanted = {
            f"{name}.{kind}" for name in OFFICIAL_KEYS.values() for kind in ("weight", "bias")
        }
        wrong = sorted(wanted.symmetric_difference(tensors))
        if wrong:
            state = "is missing" if wrong[0] in wanted else "has no place in pixel-shuffle"
            raise WeightsError(f"{wrong[0]} {state}")
        width = tensors["mlp1.0.weight"].shape[0]
        if width % 4 or tensors["mlp1.1.weight"].shape[1] != width:
            raise WeightsError(
                f"mlp1 reads {tuple(tensors['mlp1.1.weight'].shape)} from a norm of {width} "
                "channels, which are not those of 2 x 2 cells"
            )
        return {"factor": 2, "hidden_width": tensors["mlp1.1.weight"].shape[0]}

    @staticmethod
    def official_names(state: Mapping[str, Tensor]) -> dict[str, str]:
        """Official names of norm and linear layers."""
        return {
            name: f"{OFFICIAL_KEYS[name.rsplit('.', 1)[0]]}.{name.rsplit('.', 1)[1]}"
            for name in state
        }


def read_release(directory: Path, prefix: str = "") -> dict[str, Tensor]:
    """Weights of a whole InternVL2 or Mini-Monkey release, by the names of our model.

    Only weights: such a release's tokenizer and configuration run code of its own to be read.

    Args:
        directory: The release's folder.
        prefix: Level of the connector's names: ``pixel-shuffle.`` where the chain has further
            stages, nothing where it stands alone.

    Returns:
        Tensors for ``load_state_dict`` of a model with an ``internvl_vision`` tower, the connector
        ``pixel-shuffle`` and a Llama of the same sizes; the vocabulary is the release's, without
        the row of our image token.

    Raises:
        WeightsError: A file is missing, damaged or a pickle; another language model, another
            connector or tower; or a tensor that has no place.
    """
    config = _read_config(directory)
    tensors = _read_tensors(directory)
    text = config["llm_config"]
    connector = {name: t for name, t in tensors.items() if name.startswith("mlp1.")}
    tower = {name: t for name, t in tensors.items() if name.startswith(_VISION)}
    language = {name: t for name, t in tensors.items() if name.startswith(_LANGUAGE)}
    others = sorted(set(tensors).difference(connector, tower, language))
    if others:
        raise WeightsError(f"{directory}: {others[0]} has no place in a model here")
    MiniMonkeyKeys.options(connector, (1, 1))
    inverse = {theirs: ours for ours, theirs in OFFICIAL_KEYS.items()}
    state: dict[str, Tensor] = {}
    for name, tensor in tower_state(tower).items():
        state[f"model.vision_tower.{name}"] = tensor
    for name, tensor in connector.items():
        module, kind = name.rsplit(".", 1)
        state[f"model.multi_modal_projector.{prefix}{inverse[module]}.{kind}"] = tensor
    llama = llama_state(language, text["num_attention_heads"], text["num_key_value_heads"])
    for name, tensor in llama.items():
        ours = (
            name
            if name.startswith("lm_head.")
            else name.replace("model.", "model.language_model.", 1)
        )
        state[ours] = tensor
    return state


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise WeightsError(f"{directory} has no config.json; fetch the whole release")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path} is damaged ({error}); fetch the release again") from error
    text = config.get("llm_config", {})
    made = (text.get("architectures") or ["an unnamed language model"])[0]
    if made != _LLM:
        raise WeightsError(
            f"{path} names {made}; only releases on InternLM2 (InternVL2-2B, 8B and Mini-Monkey) "
            "can be read"
        )
    wanted = {"select_layer": -1, "ps_version": "v2", "downsample_ratio": 0.5}
    for field, value in wanted.items():
        if config.get(field, value) != value:
            raise WeightsError(
                f"{path} has {field} {config[field]!r}, where {value!r} is what can be read"
            )
    scaling = text.get("rope_scaling")
    if scaling and scaling.get("type") != "dynamic":
        raise WeightsError(f"{path} has rope_scaling {scaling}; only the dynamic kind can be read")
    return config


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = sorted([*directory.glob("*.bin"), *directory.glob("*.pt*")])
        found = (
            f"only {pickled[0].name}, a pickle, which is never read" if pickled else "no weights"
        )
        raise WeightsError(f"{directory} holds {found}; fetch the release's .safetensors files")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} is damaged ({error}); fetch it again") from error
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        missing = sorted(set(json.loads(index.read_text())["weight_map"]).difference(tensors))
        if missing:
            raise WeightsError(f"{directory} lacks {missing[0]}; a shard is missing, fetch it")
    return tensors
