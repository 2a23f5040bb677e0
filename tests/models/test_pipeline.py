"""Tokens predicted = tokens produced, for every view x connector x layout and any picture size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorStage, ConnectorState
from vistoken.core.registry import part_names
from vistoken.core.tables import TOKEN, VIEW, TokenKind, rectangles, split_media
from vistoken.models.build import build
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.pipeline import PartSpec, PipelineSpec, TokenPlan, TowerSpec, anchor_rows
from vistoken.models.recipe import load_recipe, parse_recipe

SP = {"part": "llava-sp", "options": {"variant": "pooling", "width": 8}}
CONNECTORS = {
    "mlp": ["mlp"],
    "llava-sp": [SP],
    "llava-sp-pool": [SP, {"part": "pool", "options": {"grid": [3, 2]}}],
    "mlp-free-scale": ["mlp", "free-tokens", "rms-scale"],
    "mlp-row-col": ["mlp", {"part": "row-col", "options": {"std": 0.1}}],
    "pixel-shuffle": ["pixel-shuffle"],
    "uhd-resampler": [{"part": "uhd-resampler", "options": {"grid": 3}}],
}
VIEWS = {
    "pad": "pad",
    "square": "square",
    "anyres": {"part": "anyres", "options": {"grids": [[1, 2], [2, 1], [2, 2]]}},
    "inf-dcm": {"part": "inf-dcm", "options": {"n": 2}},
    "msac": {"part": "msac", "options": {"max_detailed": 6, "max_adaptive": 4}},
    "uhd-slices": {"part": "uhd-slices", "options": {"max_slices": 4, "max_aspect": 200}},
}
ANY_GRID = {"uhd-slices"}  # views of other sizes than the tower's; their own tests trace them
ONE_GRID = {"llava-sp", "llava-sp-pool"}  # connectors whose weights belong to one grid
EVEN_GRID = {"pixel-shuffle"}  # connectors that divide the grid
SIZES = st.tuples(st.integers(1, 200), st.integers(1, 200))


def test_every_registered_view_and_layout_is_in_the_matrix():
    assert set(part_names("views")) == set(VIEWS)
    named = {s if isinstance(s, str) else s["part"] for chain in CONNECTORS.values() for s in chain}
    registered = {n for kind in ("project", "reduce", "append") for n in part_names(kind)}
    assert named == registered


def make(views, connector, layout):
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"views": VIEWS[views], "connector": CONNECTORS[connector], "layout": layout}
    return build(parse_recipe(values, "matrix"))


def any_odd_grid(processor, sizes):
    """Whether a connector that divides the grid refuses these sizes before anything runs."""
    try:
        processor._get_num_multimodal_tokens(image_sizes=sizes)
    except UsageError:
        return True
    return False


@pytest.mark.parametrize("layout", part_names("layout"))
@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("views", VIEWS)
def test_predicted_equals_produced(views, connector, layout):
    model, processor = make(views, connector, layout)
    if views in ANY_GRID and connector in ONE_GRID:
        with pytest.raises(UsageError, match="was built for a feature grid of 4x4"):
            processor._get_num_multimodal_tokens(image_sizes=[(30, 90)])
        return

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(SIZES, min_size=1, max_size=2))
    def check(sizes):
        assume(views not in ANY_GRID or all(max(size) > 1 for size in sizes))
        pictures = [Image.new("RGB", (width, height), (9, 99, 199)) for height, width in sizes]
        inputs = processor.image_processor(pictures)
        if views in ANY_GRID and connector in EVEN_GRID and any_odd_grid(processor, sizes):
            with pytest.raises(UsageError, match="cannot be divided by 2"), torch.no_grad():
                model.get_image_features(**inputs)
            return
        with torch.no_grad():
            features = model.get_image_features(**inputs)
        predicted = processor._get_num_multimodal_tokens(image_sizes=sizes)
        assert [len(t) for t in features.pooler_output] == predicted["num_image_tokens"]
        assert [len(t) for t in split_media(inputs["view_table"])] == predicted["num_image_patches"]
        for (height, width), token_map in zip(sizes, features.token_map, strict=True):
            expected = processor.image_processor.token_map(height, width)
            assert torch.equal(TOKEN.set(token_map, media=-1), expected)

    check()


class PassThrough(ConnectorStage):
    """A projection that leaves features as they are, so that they can carry coordinates."""

    def forward(self, state: ConnectorState) -> ConnectorState:
        return state


@pytest.mark.parametrize("pool", [False, True], ids=["cells", "pooled"])
@pytest.mark.parametrize("layout", part_names("layout"))
@pytest.mark.parametrize("views", sorted(set(VIEWS) - ANY_GRID))
def test_tokens_come_out_where_the_map_says(views, layout, pool):
    """Each feature holds its own centre in the original; the map must tell the same place."""
    tower = TowerSpec("toy", (32, 32), 8, width=2)
    chain = [PartSpec("mlp", {}, "mlp")]
    chain += [PartSpec("pool", {"grid": [2, 2]}, "pool")] if pool else []
    spec = PipelineSpec(
        (tower,), tuple(chain), PartSpec(layout), 2, PartSpec.read(VIEWS[views], "views")
    )
    processor = VistokenImageProcessor(spec.to_dict())
    plan = TokenPlan(spec)
    stages = [
        PassThrough(s.config, s.context) if s.kind == "project" else s.part(s.config, s.context)
        for s in plan.chain
    ]
    layout_module = plan.build()[1]

    @settings(max_examples=25, deadline=None)
    @given(SIZES)
    def check(size):
        table = processor.view_table(*size)
        state = ConnectorState(table, anchor_rows(table), [(centres(view),) for view in table])
        state.grids = [(4, 4)] * len(table)
        state.tokens = [maps[0].flatten(0, 1) for maps in state.features]
        for stage in stages:
            state = stage(state)
        arrangement = plan.arrange(table)
        looked_up = torch.zeros(layout_module.looked_up_rows, 2)
        tokens = layout_module(
            arrangement.order, state.tokens, looked_up if len(looked_up) else None
        )
        visual = TOKEN.get(arrangement.token_map, "kind") == TokenKind.VISUAL
        top, left, bottom, right = rectangles(arrangement.token_map)[visual].unbind(-1)
        middle = torch.stack([(top + bottom) / 2, (left + right) / 2], -1)
        torch.testing.assert_close(
            tokens[visual].double(), middle, atol=0.02 * max(size), rtol=1e-3
        )
        views_of = TOKEN.get(arrangement.token_map, "view")[visual]
        rows, cols = (TOKEN.get(arrangement.token_map, c)[visual] for c in ("row", "col"))
        side = 2 if pool else 4
        for view in views_of.unique().tolist():  # rows and columns grow with the coordinates
            mine = views_of == view
            assert rows[mine].unique().numel() <= side
            assert cols[mine].unique().numel() <= side
            y, x = middle[mine].unbind(-1)
            assert torch.equal(
                torch.argsort(rows[mine] * 100 + cols[mine]),
                torch.argsort(y * 1e6 + x, stable=True),
            )

    check()


def centres(view):
    """A 4x4 feature map holding each cell's centre in original pixels."""
    cell = (torch.arange(4) + 0.5) * 8
    y = cell * VIEW.get(view, "scale_y") + VIEW.get(view, "shift_y")
    x = cell * VIEW.get(view, "scale_x") + VIEW.get(view, "shift_x")
    return torch.stack([y[:, None].expand(4, 4), x[None].expand(4, 4)], -1).float()


def test_a_spec_survives_json():
    import json

    spec = load_recipe("nano").pipeline(load_recipe("nano").model_config_for())
    again = PipelineSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
