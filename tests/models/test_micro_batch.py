"""Views encoded in bounded passes: the same features, never more views at a time."""

import pytest
import torch
from PIL import Image

from vistoken.core.errors import UsageError
from vistoken.models.build import build
from vistoken.models.configuration import VistokenConfig, VistokenVisionConfig
from vistoken.models.cost import empty_model
from vistoken.models.forecast import forecast
from vistoken.models.recipe import load_recipe, parse_recipe

VIEWS = {
    "anyres": {"views": "anyres", "connector": ["mlp"]},
    "uhd": {
        "views": "uhd-slices",
        "connector": [{"part": "uhd-resampler", "options": {"grid": 2}}],
        "layout": "uhd-schema",
    },
    "inf": {"views": {"part": "inf-dcm", "options": {"n": 2}}, "connector": ["inf-dem", "mlp"]},
}


def recipe(system, micro_batch=None):
    values = load_recipe("pico").model_dump(exclude_none=True)
    return parse_recipe({**values, **VIEWS[system], "micro_batch": micro_batch}, system)


@pytest.mark.parametrize("system", VIEWS)
def test_passes_do_not_change_features(system):
    model, processor = build(recipe(system))
    pictures = [Image.effect_noise((w, h), 60).convert("RGB") for h, w in ((70, 50), (40, 120))]
    inputs = processor.image_processor(pictures)
    seen = []
    tower = model.model.towers()[0]
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    with torch.no_grad():
        whole = model.get_image_features(**inputs).pooler_output
        together, views = max(seen), sum(seen)
        for micro_batch in (1, 3):
            seen.clear()
            model.config.vision_config.micro_batch = micro_batch
            parts = model.get_image_features(**inputs).pooler_output
            assert max(seen) <= micro_batch < together
            assert sum(seen) == views == len(inputs["view_table"])
            for a, b in zip(whole, parts, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_recipe_decides_and_the_configuration_keeps_it(tmp_path):
    config = recipe("inf", micro_batch=4).model_config_for()
    assert config.vision_config.micro_batch == 4
    config.save_pretrained(tmp_path)
    assert VistokenConfig.from_pretrained(tmp_path).vision_config.micro_batch == 4
    assert recipe("inf").model_config_for().vision_config.micro_batch is None


def test_a_pass_needs_a_view():
    with pytest.raises(UsageError, match="micro_batch"):
        recipe("inf", micro_batch=0)
    with pytest.raises(Exception, match="micro_batch"):
        VistokenVisionConfig(towers=[], micro_batch=0)


def test_less_is_held_at_a_time():
    def held(micro_batch):
        made = recipe("inf", micro_batch)
        model = empty_model(made.model_config_for())
        return forecast(model, made.pipeline(model.config), (64, 64)).memory

    assert held(1).encoding < held(None).encoding / 2
    assert held(1).weights == held(None).weights
