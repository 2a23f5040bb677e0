"""Names of InternVL2 releases: joint projections come apart, and the connector is recognised."""

from __future__ import annotations

import pytest
import torch

from vistoken.core.errors import WeightsError
from vistoken.core.registry import load_part
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.models.templates import canonical_name
from vistoken.systems.mini_monkey.internlm2 import split_wqkv
from vistoken.systems.mini_monkey.release import OFFICIAL_KEYS, MiniMonkeyRelease
from vistoken.systems.mini_monkey.release_keys import MiniMonkeyKeys

WIDTH, TEXT = 16, 24


def connector():
    shapes = {"0": (4 * WIDTH,), "1": (TEXT, 4 * WIDTH), "3": (TEXT, TEXT)}
    tensors = {f"mlp1.{n}.weight": torch.empty(shape) for n, shape in shapes.items()}
    return tensors | {f"mlp1.{n}.bias": torch.empty(shape[:1]) for n, shape in shapes.items()}


def test_packed_projection_by_hand():
    head, rows = 3, []
    for group in range(2):
        rows += [("q", 2 * group)] * head + [("q", 2 * group + 1)] * head
        rows += [("k", group)] * head + [("v", group)] * head
    code = {"q": 0.0, "k": 100.0, "v": 200.0}
    packed = torch.tensor([[code[kind] + number] for kind, number in rows])
    q, k, v = split_wqkv(packed, 4, 2)
    assert q.flatten().tolist() == [h for h in range(4) for _ in range(head)]
    assert k.flatten().tolist() == [100.0] * head + [101.0] * head
    assert v.flatten().tolist() == [200.0] * head + [201.0] * head
    with pytest.raises(WeightsError, match="a wqkv of 25 rows is not made of 4 query heads"):
        split_wqkv(torch.zeros(25, 1), 4, 2)


def test_connector_names_are_registered():
    importer = load_part("importer", "mini-monkey")
    assert importer is MiniMonkeyKeys
    tensors = connector()
    assert importer.recognises(tensors)
    assert not importer.recognises([*tensors, "vision_model.embeddings.class_embedding"])
    assert importer.options(tensors, (4, 4)) == {"factor": 2, "hidden_width": TEXT}
    ours = [f"{name}.{kind}" for name in OFFICIAL_KEYS for kind in ("weight", "bias")]
    assert set(importer.official_names(dict.fromkeys(ours)).values()) == set(tensors)
    del tensors["mlp1.3.bias"]
    with pytest.raises(WeightsError, match=r"mlp1\.3\.bias is missing"):
        importer.options(tensors, (4, 4))


def test_the_released_config_is_that_of_the_recipe():
    """The published sizes of InternVL2-2B give the very model of mini-monkey-2b."""
    recipe = load_recipe("mini-monkey-2b")
    language, tower = recipe.language_model.config, recipe.towers[0]
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {name: tower.config[name] for name in sizes} | {"image_size": 448, "patch_size": 14}
    config = {
        "force_image_size": 448,
        "llm_config": {**language, "architectures": ["InternLM2ForCausalLM"]},
        "vision_config": vision,
    }
    read = parse_recipe(MiniMonkeyRelease.recipe(config, "config.json", "mini-monkey"), "read")
    assert canonical_name(read.template) == recipe.template
    with torch.device("meta"):
        made, own = (
            VistokenForConditionalGeneration(r.model_config_for()).state_dict()
            for r in (read, recipe)
        )
    assert {n: t.shape for n, t in made.items()} == {n: t.shape for n, t in own.items()}
    views = [
        r.pipeline(r.model_config_for()).view_function().view_table(900, 500)
        for r in (read, recipe)
    ]
    assert torch.equal(*views)
