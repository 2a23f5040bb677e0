"""A stage may prepare its pictures otherwise than the model that it trains."""

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from vistoken.core.errors import UsageError
from vistoken.models.processing import VistokenProcessor
from vistoken.models.recipe import load_recipe
from vistoken.train.opening import open_run
from vistoken.train.run import train

from .conftest import row, write_lines
from .stages import JOINT, configuration

STAGE = JOINT | {"needs": None, "steps": 1, "schedule": "constant", "warmup": 0}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A picture whose sides are cut by ``square`` and kept by ``pad``."""
    root = tmp_path_factory.mktemp("wide")
    Image.radial_gradient("L").resize((96, 32)).convert("RGB").save(root / "x.png")
    write_lines(root / "train.jsonl", [row("a", "x.png", "What is it?", "cup")])
    return root


def test_the_stage_sees_its_own_views_and_the_model_keeps_its(wide, tmp_path):
    config = configuration(wide, tmp_path / "a", [STAGE | {"views": "square"}])
    run = open_run(config)
    staged = run.for_stage(config.stages[0])
    assert staged.model is run.model
    pictures = [wide / "x.png"]
    padded, cut = (r.processor.image_processor(pictures)["pixel_values"] for r in (run, staged))
    assert padded.shape == cut.shape
    assert not torch.allclose(padded, cut, atol=0.1)
    assert run.cache.key(pictures[0]) != staged.cache.key(pictures[0])
    assert run.for_stage(config.stages[0].model_copy(update={"views": None})) is run


def test_training_uses_them(wide, tmp_path):
    values = load_recipe("pico").model_dump(mode="json", exclude_none=True)
    recipe = tmp_path / "square.yaml"
    recipe.write_text(yaml.safe_dump(values | {"views": "square"}))
    found = {}
    for name, stage, fields in (
        ("pad", STAGE, {}),
        ("stage", STAGE | {"views": "square"}, {}),
        ("recipe", STAGE, {"recipe": str(recipe)}),
    ):
        report = train(configuration(wide, tmp_path / name, [stage], **fields))
        found[name] = load_file(tmp_path / name / "stages" / "joint" / "trained.safetensors")
        if name == "stage":
            kept = VistokenProcessor.from_pretrained(report.model).image_processor.spec.views
            assert kept.part == "pad"
    same = {
        other: all(torch.equal(tensor, found[other][n]) for n, tensor in found["stage"].items())
        for other in ("pad", "recipe")
    }
    assert same == {"pad": False, "recipe": True}


def test_unknown_views_are_named_before_anything_is_read(wide, tmp_path):
    with pytest.raises(UsageError, match=r"stages\.joint.*'sqare'.*did you mean 'square'"):
        configuration(wide, tmp_path / "a", [STAGE | {"views": "sqare"}])


@pytest.mark.parametrize("recipe", ["llava-1.5-7b", "llava-1.5-13b", "saisa-7b", "yopo-7b"])
def test_released_alignment_cuts_and_tuning_pads(recipe):
    found = load_recipe(recipe)
    pretrain, finetune = found.train["stages"]
    assert (found.views, pretrain["views"], finetune.get("views")) == ("pad", "square", None)
