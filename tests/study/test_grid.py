"""The grid: what an arm becomes, which arms are refused, and the study that comes along."""

from __future__ import annotations

import pytest

from vistoken.core.errors import UsageError
from vistoken.models.build import meta_model
from vistoken.study.costs import predict
from vistoken.study.grid import make_grid, with_values
from vistoken.study.settings import Study, load_study, study_names
from vistoken.train.groups import part_parameters


def test_paths_lead_into_lists_and_mappings():
    values = {"a": [{"name": "x", "b": 1}, "y", {"part": "z"}], "c": {"d": 2}}
    changed = with_values(
        values, {"a.x.b": 3, "a.y": "w", "a.z.options": {"k": 1}, "a.3": "new", "c.e.f": 4}, "arm q"
    )
    assert changed == {
        "a": [{"name": "x", "b": 3}, "w", {"part": "z", "options": {"k": 1}}, "new"],
        "c": {"d": 2, "e": {"f": 4}},
    }
    assert with_values(values, {"a.+y": "v"}, "arm q")["a"][1:3] == ["v", "y"]
    assert values["a"][0]["b"] == 1
    for path, words in (("a.9", "no entry '9'"), ("c.d.e", "'d' is a value"), ("a.q.b", "arm q")):
        with pytest.raises(UsageError, match=words):
            with_values(values, {path: 1}, "arm q")


def test_cells_and_their_names(study_file):
    grid = make_grid(load_study(study_file))
    assert [cell.name for cell in grid.cells] == [
        "mlp/0", "free-tokens/0", "mlp/1", "free-tokens/1",
    ]  # fmt: skip
    assert [cell.recipe.seed for cell in grid.cells] == [0, 0, 1, 1]
    assert grid.arm_recipe("free-tokens").connector[1] == "free-tokens"
    assert [cell.name for cell in grid.only(["mlp", "free-tokens/1"])] == [
        "mlp/0", "mlp/1", "free-tokens/1",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="did you mean 'mlp"):
        grid.only(["mlpp"])
    changed = make_grid(load_study(study_file), changes={"train.stages.joint.steps": 9})
    assert changed.arm_recipe("mlp").train["stages"][1]["steps"] == 9


def test_arms_that_are_not_trained_alike_are_refused(study_file):
    study = load_study(study_file).model_dump()
    study["arms"]["free-tokens"]["set"]["train.stages.joint.steps"] = 5
    with pytest.raises(UsageError, match="free-tokens is trained in other steps than mlp"):
        make_grid(Study.model_validate(study))
    study["arms"]["free-tokens"]["set"] = {"train.stages.joint.minutes": 5}
    with pytest.raises(UsageError, match="ends by the clock"):
        make_grid(Study.model_validate(study))


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        (["joint"], "must be its first ones"),
        (["first", "joint"], "others must follow"),
    ],
)
def test_stages_that_cannot_be_shared(study_file, shared, words):
    study = load_study(study_file).model_dump()
    with pytest.raises(UsageError, match=words):
        make_grid(Study.model_validate({**study, "shared": shared}))
    study["arms"]["free-tokens"]["set"]["train.stages.first.groups.language.train"] = "lora"
    with pytest.raises(UsageError, match="only the group connector is the same"):
        make_grid(Study.model_validate(study))


def test_faulty_studies(tmp_path, study_file):
    text = study_file.read_text("utf-8")
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace("baseline: mlp", "baseline: mlq"), encoding="utf-8")
    with pytest.raises(UsageError, match="'mlq' is no arm; did you mean 'mlp'"):
        load_study(path)
    path.write_text(text.replace("latency_rounds", "latencyrounds"), encoding="utf-8")
    with pytest.raises(UsageError, match="latencyrounds"):
        load_study(path)
    with pytest.raises(UsageError, match="spatial-tokens"):
        load_study("spatial-token")
    with pytest.raises(UsageError, match="no size 'big'"):
        make_grid(load_study(study_file), "big")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "full", "kernels"])
def test_the_study_of_spatial_tokens_builds_at_every_size(size):
    assert "spatial-tokens" in study_names()
    grid = make_grid(load_study("recipes/studies/spatial-tokens.yaml"), size)
    spatial, tokens = {}, {}
    for arm in grid.arms:
        recipe = grid.arm_recipe(arm)
        model = meta_model(recipe)
        groups = part_parameters(model)
        trained = {
            name
            for stage in recipe.train["stages"]
            for name, group in stage["groups"].items()
            if group.get("train", "frozen") != "frozen"
        }
        assert all(groups[name] for name in trained), arm
        assert ("spatial" in trained) == bool(groups["spatial"]), arm
        spatial[arm] = sum(p.numel() for p in groups["spatial"].values())
        tokens[arm] = predict(recipe)["visual_tokens"]
    patches = tokens["mlp"]
    same = {"mlp", "row-col"}
    assert tokens == {arm: patches + 6 * (arm not in same) for arm in tokens}
    assert spatial["mlp"] == 0
    rising = ["free-tokens", "sp-pooling", "sp-pooling-detail"]
    kernels = ["sp-pooling", "kernel-low-rank", "kernel-full"]
    for order in (rising, kernels):
        counts = [spatial[arm] for arm in order if arm in spatial]
        assert counts == sorted(set(counts))
