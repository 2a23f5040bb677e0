"""Tiny models, between them with every part that vLLM runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig

from vistoken.models.build import build, references_of
from vistoken.models.checkpoint import save_light
from vistoken.models.recipe import Recipe, load_recipe, parse_recipe

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
CLIP = {
    "name": "clip",
    "source": "random",
    "config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
    "feature_layer": -2,
    "size": [32, 32],
    "mean": MEAN,
    "std": STD,
}
DINO = {
    **CLIP,
    "name": "dino",
    "config": {
        "model_type": "dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "use_mask_token": False,
    },
    "feature_layer": -1,
    "fit": "stretch",
}
LITE = {
    **CLIP,
    "name": "lite",
    "config": {"model_type": "efficientnet-lite"},
    "feature_layer": 4,
    "size": [64, 64],
    "fit": "stretch",
}
SP = {
    "part": "llava-sp",
    "options": {"variant": "cropping", "width": 16, "detail_kernel": 2, "scales": [2, 4]},
}

LANGUAGE = {
    # vLLM's attention on a CPU knows no heads of fewer than 32 channels
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # with the usual scale a random model answers every picture alike
    "initializer_range": 0.15,
}

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"connector": ["mlp"]},
    "llava-sp": {"connector": [SP]},
    "nano-like": {
        "towers": [DINO, LITE],
        "views": "square",
        "connector": [
            "concat-grid",
            {**SP, "options": {**SP["options"], "variant": "pooling"}},
            {"part": "pool", "options": {"grid": [2, 2]}},
            "row-col",
            {"part": "rms-scale", "options": {"gain": 0.5}},
            {"part": "free-tokens", "options": {"count": 2}},
        ],
    },
    "anyres": {"views": "anyres", "connector": ["mlp"], "layout": "anyres-unpad"},
    "llava-uhd": {
        "views": {"part": "uhd-slices", "options": {"max_slices": 4}},
        "connector": [{"part": "uhd-resampler", "options": {"grid": 2, "heads": 4}}],
        "layout": "uhd-schema",
    },
    "inf-llava": {
        "views": {"part": "inf-dcm", "options": {"n": 2}},
        "connector": [{"part": "inf-dem", "options": {"heads": 4}}, "mlp"],
    },
    "mini-monkey": {"views": "msac", "connector": ["pixel-shuffle"]},
}


def make_recipe(name: str) -> Recipe:
    """One of :data:`MODELS` as a recipe."""
    values = load_recipe("pico").model_dump()
    values |= {"name": f"tiny-{name}", "towers": [CLIP], **MODELS[name]}
    values["language_model"]["config"] |= LANGUAGE
    return parse_recipe(values, name)


@dataclass(frozen=True)
class Tiny:
    """A model in memory, LoRA beside its weights, and its light checkpoint."""

    model: Any
    processor: Any
    light: Path


@pytest.fixture(scope="session")
def recipes():
    """Every tiny model by name, as a recipe."""
    return {name: make_recipe(name) for name in MODELS}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Make a tiny model with LoRA that does something: (name) -> Tiny."""

    def make(name: str) -> Tiny:
        recipe = make_recipe(name)
        model, processor = build(recipe)
        targets = r"model\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"
        model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        light = tmp_path_factory.mktemp(name) / "light"
        save_light(model, processor, light, references_of(recipe), torch.float32)
        return Tiny(model.eval(), processor, light)

    return make


@pytest.fixture
def recipe_file(tmp_path):
    """Write a tiny recipe with changes as a file: (name, **changes) -> path."""

    def write(name: str, **changes: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**make_recipe(name).model_dump(mode="json"), **changes}))
        return str(path)

    return write
