"""Whole InternVL2 releases on InternLM2, Mini-Monkey's among them, as models of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.core.whole_release import WholeRelease
from vistoken.systems.mini_monkey.internlm2 import llama_state
from vistoken.systems.mini_monkey.internvit import tower_state

OFFICIAL_KEYS = {"norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}
"""Our module of ``pixel-shuffle`` -> the official one."""

_OURS = {theirs: ours for ours, theirs in OFFICIAL_KEYS.items()}
_VISION, _CONNECTOR, _LANGUAGE = "vision_model.", "mlp1.", "language_model."
_LLM, _TEMPLATE = "InternLM2ForCausalLM", "internlm2-chat"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TEXT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
)
_VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "layer_norm_eps",
    "hidden_act",
)


class MiniMonkeyRelease(WholeRelease):
    """Reads Mini-Monkey and InternVL2 releases with InternViT-300M and InternLM2.

    A release's config does not say which of the two it is: ``mini-monkey`` cuts pictures twice,
    by the budgets of the released demo; ``internvl2`` once, as its config says.

    Source: OpenGVLab/InternVL:internvl_chat; Yuliang-Liu/Monkey:project/mini_monkey.
    """

    variants = ("mini-monkey", "internvl2")

    @staticmethod
    def recipe(config: Mapping[str, Any], where: str, variant: str) -> dict[str, Any]:
        """Fields of a recipe for a release.

        Raises:
            WeightsError: Another language model, tower, connector or template.
        """
        text, vision = _checked(config, where)
        side = config.get("force_image_size") or vision["image_size"]
        tower = {name: vision[name] for name in _VISION_FIELDS if name in vision}
        size, patch = [vision["image_size"]] * 2, [vision["patch_size"]] * 2
        tower |= {"image_size": size, "patch_size": patch}
        tower |= {"model_type": "internvl_vision", "use_mean_pooling": True}
        tower["attention_bias"] = vision.get("qkv_bias", True)
        # pictures that need more positions are refused, so stretched positions never come about
        language = {name: text[name] for name in _TEXT_FIELDS if name in text}
        return {
            "name": "imported",
            "template": config.get("template", _TEMPLATE),
            "views": {"part": "msac", "options": _tilings(config, variant)},
            "towers": [
                {
                    "name": "internvit",
                    "source": where,
                    "config": tower,
                    "feature_layer": -1,
                    "size": [side, side],
                    "mean": _MEAN,
                    "std": _STD,
                    "fit": "stretch",
                }
            ],
            "connector": [
                {"part": "pixel-shuffle", "options": {"hidden_width": text["hidden_size"]}}
            ],
            "language_model": {"source": where, "config": language | {"model_type": "llama"}},
        }

    @staticmethod
    def state(
        tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str
    ) -> dict[str, dict[str, Tensor]]:
        """What every tensor becomes: joint projections are split, nothing else is changed.

        Raises:
            WeightsError: A tensor has no place in the model.
        """
        text = config["llm_config"]
        heads, shared = text["num_attention_heads"], text["num_key_value_heads"]
        return {name: _placed({name: t}, name, heads, shared, where) for name, t in tensors.items()}


def _placed(
    tensor: Mapping[str, Tensor], name: str, heads: int, shared: int, where: str
) -> dict[str, Tensor]:
    if name.startswith(_VISION):
        return {f"model.vision_tower.{ours}": t for ours, t in tower_state(tensor).items()}
    if name.startswith(_LANGUAGE):
        made = llama_state(tensor, heads, shared)
        return {_in_model(ours): part for ours, part in made.items()}
    module, _, kind = name.rpartition(".")
    if module not in _OURS:
        raise WeightsError(f"{where}: {name} has no place in a model here")
    return {f"model.multi_modal_projector.pixel-shuffle.{_OURS[module]}.{kind}": tensor[name]}


def _in_model(name: str) -> str:
    if name.startswith("lm_head."):
        return name
    return name.replace("model.", "model.language_model.", 1)


def _tilings(config: Mapping[str, Any], variant: str) -> dict[str, Any]:
    if variant == "mini-monkey":
        return {}
    least, most = config.get("min_dynamic_patch", 1), config.get("max_dynamic_patch", 12)
    return {"min_detailed": least, "max_detailed": most, "adaptive": "none"}


def _checked(config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The language model's and the tower's config, once nothing in them is unknown here."""
    text, vision = config.get("llm_config", {}), config.get("vision_config", {})
    made = (text.get("architectures") or ["an unnamed language model"])[0]
    if made != _LLM:
        raise WeightsError(
            f"{where} names {made}; only releases on InternLM2 (InternVL2-2B, 8B and Mini-Monkey) "
            "can be read"
        )
    scaling = text.get("rope_scaling") or {"type": "dynamic"}
    wanted = (
        (config, {"select_layer": -1, "ps_version": "v2", "downsample_ratio": 0.5}),
        (config, {"template": _TEMPLATE, "use_thumbnail": True}),
        (text, {"hidden_act": "silu", "bias": False}),
        (scaling, {"type": "dynamic"}),
        (vision, {"qk_normalization": False, "norm_type": "layer_norm"}),
    )
    for values, fields in wanted:
        for field, value in fields.items():
            if values.get(field, value) != value:
                raise WeightsError(
                    f"{where} has {field} {values[field]!r}, where {value!r} is what can be read"
                )
    for values, name in ((text, "llm_config"), (vision, "vision_config")):
        needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        missing = [field for field in needed if field not in values]
        if missing:
            raise WeightsError(f"{where} has no {missing[0]} in {name}; fetch the release again")
    return text, vision
