"""The probe looks where the thing is, at tiles where there are tiles, and learns what is there."""

import pytest
import torch
from views_probe import covered, fit, thing_vector

from vistoken.core.chain import grid_token_map
from vistoken.core.tables import rectangles
from vistoken.models.recipe import load_recipe, parse_recipe

SIDE = 96


def views_of(part):
    values = load_recipe("pico").model_dump(exclude_none=True) | {"views": part}
    recipe = parse_recipe(values, "probe")
    return recipe.pipeline(recipe.model_config_for()).view_function().view_table(SIDE, SIDE)


@pytest.mark.parametrize(
    "part", ["pad", {"part": "anyres", "options": {"grids": [[3, 3]]}}], ids=["pad", "anyres"]
)
def test_a_thing_is_looked_for_where_it_is(part):
    table = views_of(part)
    boxes = [rectangles(grid_token_map(view, (4, 4))) for view in table]
    whole = torch.tensor([0.0, 0.0, SIDE, SIDE], dtype=torch.float64)
    assert torch.allclose(covered(boxes[0], whole), torch.ones(16, dtype=torch.float64))
    features = [box.view(4, 4, 4).float() for box in boxes]  # a cell's feature is its rectangle
    thing = torch.tensor([40.0, 8.0, 56.0, 24.0], dtype=torch.float64)
    top, left, bottom, right = thing_vector(features, table, thing).tolist()
    assert ((top + bottom) / 2, (left + right) / 2) == pytest.approx((48, 16), abs=SIDE / 24)
    assert bottom - top == pytest.approx(SIDE / (4 if part == "pad" else 12), rel=1e-5)


def test_a_probe_learns_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=generator)
    noise = torch.randn(300, 8, generator=generator)
    signal = noise.clone()
    signal[:, :3] += 4 * torch.nn.functional.one_hot(labels, 3)
    right = {
        name: float(
            (fit(v[:200], labels[:200], 3)(v[200:]).argmax(1) == labels[200:]).float().mean()
        )
        for name, v in (("signal", signal), ("noise", noise))
    }
    assert right["signal"] > 0.9
    assert right["noise"] < 0.6
