"""Drawing views: every registered view function, boxes where the tables say, whole files only."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from vistoken.core.registry import part_names
from vistoken.core.tables import ViewKind
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.viz.page import views_page
from vistoken.viz.views import describe_views, draw_views, make_panels

SIZES = [(90, 160), (300, 40), (2, 2)]


def processor_with(views, connector=("mlp",)):
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"views": views, "connector": list(connector)}
    recipe = parse_recipe(values, "viz")
    return VistokenImageProcessor(recipe.pipeline(recipe.model_config_for()).to_dict())


def shown(processor, height, width):
    table = processor.view_table(height, width)
    return describe_views(table, processor.plan.token_map(table))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", part_names("views"))
def test_every_view_function(name, size):
    processor = processor_with(name)
    views = shown(processor, *size)
    assert [view.order for view in views] == list(range(1, len(views) + 1))
    assert sum(view.tokens for view in views) == len(processor.token_map(*size))
    for view in views:
        top, left, bottom, right = view.box
        assert 0 <= top <= bottom <= size[0]
        assert 0 <= left <= right <= size[1]
    assert sum(len(panel.views) for panel in make_panels(views)) == len(views)
    image = Image.new("RGB", size[::-1], (90, 120, 90))
    drawn = draw_views(image, views)
    assert np.unique(np.asarray(drawn).reshape(-1, 3), axis=0).shape[0] > 3
    page = views_page(image, views, "a <title>")
    assert page.count("<rect ") == len(views)
    for view in views:
        assert page.count(f">{view.order} ({view.tokens})</text>") == 1
    assert "a &lt;title&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_tiles_lie_where_they_were_cut():
    processor = processor_with({"part": "inf-dcm", "options": {"n": 2}}, ["inf-dem", "mlp"])
    views = shown(processor, 100, 100)
    assert [view.box for view in views[:4]] == [
        (0, 0, 50, 50), (0, 50, 50, 100), (50, 0, 100, 50), (50, 50, 100, 100),
    ]  # fmt: skip
    assert [view.tokens for view in views] == [0] * 8 + [16]
    panels = make_panels(views)
    assert [panel.title for panel in panels] == [
        "2 x 2 tiles: no tokens",
        "2 x 2 strided views: no tokens",
        "whole picture: 16 tokens",
    ]
    drawn = np.asarray(draw_views(Image.new("RGB", (100, 100), (0, 0, 0)), views))
    blue = np.array([0x18, 0x64, 0xAB])
    assert (drawn == blue).all(-1).any(0).sum() > 500  # lines of the tiles
    assert panels[1].kind is ViewKind.STRIDED
