"""Fields of an official config become view function, layout, selection and template."""

import pytest

from vistoken.convert.official_config import read_settings
from vistoken.core.errors import WeightsError

TILE = (336, 336)
CONFIG = {"model_type": "llava_llama", "mm_vision_tower": "t", "hidden_size": 32, "rope_theta": 5.0}


def settings(**values):
    return read_settings(CONFIG | values, TILE, "config.json")


@pytest.mark.parametrize(
    ("values", "views", "layout"),
    [
        ({}, "square", "plain"),
        ({"image_aspect_ratio": "square"}, "square", "plain"),
        ({"image_aspect_ratio": "pad"}, "pad", "plain"),
        # the official code merges only what has several views
        ({"image_aspect_ratio": "pad", "mm_patch_merge_type": "spatial_unpad"}, "pad", "plain"),
    ],
)
def test_views_and_layout(values, views, layout) -> None:
    read = settings(**values)
    assert (read.views["part"], read.layout["part"]) == (views, layout)


@pytest.mark.parametrize("as_text", [False, True])
def test_pinpoints_are_widths_first_and_grids_rows_first(as_text) -> None:
    pinpoints = [[336, 672], [1008, 336]]
    read = settings(
        image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad",
        image_grid_pinpoints=str(pinpoints) if as_text else pinpoints,
    )
    assert read.views == {"part": "anyres", "options": {"grids": [[2, 1], [1, 3]]}}
    assert read.layout == {"part": "anyres-unpad"}


def test_language_model_and_template() -> None:
    assert settings().template == "vicuna-v1"
    assert settings().text == {"model_type": "llama", "hidden_size": 32, "rope_theta": 5.0}
    assert settings(version="llava_llama_2").template == "llama-2"
    assert settings(model_type="llava_mistral").text["model_type"] == "mistral"
    assert settings(model_type="llava_mistral").template == "mistral"


def test_selection() -> None:
    assert settings().select == "default"
    read = settings(mm_vision_select_feature="cls_patch", mm_vision_select_layer=-1)
    assert (read.select, read.feature_layer) == ("full", -1)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"model_type": "llava_mpt"}, "llava_mpt"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
        ({"image_aspect_ratio": "anyres"}, "image_grid_pinpoints"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": "(1x1)"}, "image_grid_pinpoints"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[300, 336]]}, "300x336"),
        ({"mm_patch_merge_type": "s2"}, "mm_patch_merge_type"),
        ({"version": "v0"}, "v0"),
    ],
)
def test_what_has_no_counterpart_is_refused(values, word) -> None:
    with pytest.raises(WeightsError, match=word):
        settings(**values)
