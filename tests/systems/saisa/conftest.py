"""Tiny text models with SAISA's mechanism, and whole models with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from vistoken.models.build import build
from vistoken.models.decoder import MechanismContext, MechanismStack, run_decoder
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.systems.saisa.config import SaisaConfig
from vistoken.systems.saisa.mechanism import Saisa

from .prompts import VOCABULARY, Prompts

WIDTH = 20
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.3,  # large enough that attention patterns matter
    "pad_token_id": 0,
}
FAMILIES = {
    "mha": lambda: LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=4)),
    "gqa": lambda: LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=12)),
}


class Tiny:
    """A text model, the mechanism, and calls of both."""

    def __init__(self, family: str = "gqa", sharing: str = "independent") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.model: Any = FAMILIES[family]().eval()
            context = MechanismContext(self.model.config, WIDTH)
            self.saisa = Saisa(SaisaConfig(sharing), context)  # type: ignore[arg-type]
        self.stack = MechanismStack([self.saisa])

    def __call__(self, prompts: Prompts, **changes: Any) -> Any:
        inputs = {**prompts.call(self.model.embed_tokens), "stack": self.stack, **changes}
        return run_decoder(self.model, **inputs)


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Every family; not to be modified."""
    return Tiny(request.param)


@pytest.fixture(scope="session")
def gqa() -> Tiny:
    """One family; not to be modified."""
    return Tiny()


@pytest.fixture
def make_tiny() -> Callable[..., Tiny]:
    """A function that makes models one may change."""
    return Tiny


def pico_values(**changes: Any) -> dict[str, Any]:
    """Fields of a tiny recipe with ``mlp`` and ``saisa``."""
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"name": "pico-saisa", "connector": ["mlp"], "mechanisms": ["saisa"]}
    values["language_model"]["config"] |= {"initializer_range": 0.2, "num_hidden_layers": 3}
    return {**copy.deepcopy(values), **changes}


@pytest.fixture(scope="session")
def build_pico() -> Callable[..., Any]:
    """A function: changed fields of the recipe -> model and processor."""

    def make(**changes: Any) -> Any:
        return build(parse_recipe(pico_values(**changes), "pico-saisa"))

    return make


@pytest.fixture(scope="session")
def pico_saisa(build_pico: Callable[..., Any]) -> Any:
    """A whole model with SAISA and its processor; not to be modified."""
    return build_pico(
        mechanisms=[{"part": "saisa", "options": {"projector_sharing": "independent"}}]
    )
