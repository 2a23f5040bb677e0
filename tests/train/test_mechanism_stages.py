"""Stages that change a decoder mechanism's form: SAISA's shared projector becomes one per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vistoken.core.errors import UsageError
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.recipe import load_recipe, recipe_names
from vistoken.train.config import recipe_config
from vistoken.train.run import train

from .stages import configuration

PRETRAIN: dict[str, Any] = {
    "name": "pretrain",
    "groups": {"mechanisms": {"train": "full", "lr": 1e-3}},
    "steps": 2,
    "log_every": 1,
}
FINETUNE: dict[str, Any] = {
    "name": "finetune",
    "needs": "pretrain",
    "mechanisms": {"saisa": {"projector_sharing": "independent"}},
    "groups": {
        "mechanisms": {"train": "full", "lr": 1e-3},
        "language": {"train": "full", "lr": 1e-3},
    },
    "steps": 2,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recipe file of the tiny model with ``mlp`` and ``saisa``."""
    values = load_recipe("pico").model_dump(mode="json", exclude_none=True)
    values |= {"name": "pico-saisa", "connector": ["mlp"], "mechanisms": ["saisa"]}
    path = tmp_path_factory.mktemp("recipe") / "pico-saisa.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(scope="module")
def finished(data: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of both stages."""
    out = tmp_path_factory.mktemp("run") / "a"
    config = configuration(data, out, stages=(PRETRAIN, FINETUNE), recipe=recipe)
    return config, train(config)


def stage_weights(config: Any, stage: str) -> dict[str, torch.Tensor]:
    return load_file(config.output / "stages" / stage / "trained.safetensors")


def test_projectors_split_between_the_stages(finished: Any) -> None:
    config, _ = finished
    names = [{n.split(".")[4] for n in stage_weights(config, s) if "mechanisms" in n}
             for s in ("pretrain", "finetune")]  # fmt: skip
    assert names == [{"shared"}, {"0", "1"}]
    after = stage_weights(config, "finetune")
    stem = "model.mechanisms.saisa.projectors"
    first, second = (after[f"{stem}.{layer}.linear_2.weight"] for layer in (0, 1))
    shared = stage_weights(config, "pretrain")[f"{stem}.shared.linear_2.weight"]
    assert (first - second).abs().max() > 1e-5
    assert (first - shared).abs().max() < 0.05  # it went on from there


def test_only_named_parts_changed_in_the_first_stage(finished: Any) -> None:
    config, _ = finished
    names = {n for n in stage_weights(config, "pretrain") if "language_model" in n}
    assert not names


def test_a_language_model_trained_in_full_is_in_the_result(finished: Any) -> None:
    config, report = finished
    model = VistokenForConditionalGeneration.from_pretrained(report.model, dtype=torch.float32)
    (mechanism,) = model.config.decoder_config["mechanisms"]
    assert mechanism["options"]["projector_sharing"] == "independent"
    trained = stage_weights(config, "finetune")
    assert any("language_model" in name for name in trained)
    own = model.state_dict()
    for name, tensor in trained.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-2, atol=1e-2)


def test_going_on_finds_the_form_of_each_stage(data: Path, finished: Any) -> None:
    config, _ = finished
    assert train(config, resume=True).stages == ()
    (config.output / "stages" / "finetune" / "done.json").unlink()
    report = train(config, resume=True)
    assert [stage.name for stage in report.stages] == ["finetune"]


def test_a_stage_cannot_ask_for_what_is_not_there(data: Path, tmp_path: Path, recipe: str) -> None:
    stage = {**PRETRAIN, "mechanisms": {"sparse": {"keep": 1}}}
    config = configuration(data, tmp_path / "b", stages=(stage,), recipe=recipe)
    with pytest.raises(UsageError, match="no decoder mechanism 'sparse'; it has saisa"):
        train(config, dry_run=True)
    stage = {**PRETRAIN, "mechanisms": {"saisa": {"sharing": "independent"}}}
    config = configuration(data, tmp_path / "c", stages=(stage,), recipe=recipe)
    with pytest.raises(UsageError, match="no option 'sharing'.*projector_sharing"):
        train(config, dry_run=True)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("saisa")])
def test_recipes_share_first_and_split_then(name: str) -> None:
    recipe = load_recipe(name)
    config = recipe_config(name, recipe.train, {"data": ["d.jsonl"], "output": "o"})
    first, second = config.stages
    assert first.mechanisms == {}
    assert first.group("language").train == "frozen"
    assert second.mechanisms == {"saisa": {"projector_sharing": "independent"}}
    assert {first.group("mechanisms").train, second.group("mechanisms").train} == {"full"}
    (mechanism,) = recipe.model_config_for().decoder_config["mechanisms"]
    assert mechanism["options"] == {"projector_sharing": "shared_then_split"}
    if name == "saisa-7b":  # the paper's recipe is LLaVA-1.5's
        assert [s.group("mechanisms").lr for s in config.stages] == [1e-3, 2e-5]
        assert [s.images_per_step * s.accumulate for s in config.stages] == [256, 128]
        assert second.group("language").train == "full"
        assert second.max_length == 2048
