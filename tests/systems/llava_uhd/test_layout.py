"""Layout uhd-schema: order, separators of the language model, places of all tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorState
from vistoken.core.tables import TOKEN, VIEW, TokenKind, rectangles
from vistoken.models.build import load_tokenizer
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.pipeline import PartSpec, PipelineSpec, TokenPlan, TowerSpec, anchor_rows
from vistoken.systems.llava_uhd.config import UhdSchemaConfig
from vistoken.systems.llava_uhd.layout import UhdSchema, separator_id

SEPARATORS = torch.tensor([[-1.0] * 4, [-2.0] * 4])


def spec_of(grid=3, compat="fixed", size=(56, 56), **views):
    """A pipeline of LLaVA-UHD's parts whose channels are wide enough for a place."""
    return PipelineSpec(
        (TowerSpec("toy", size, 14, width=4),),
        (PartSpec("uhd-resampler", {"grid": grid, "compat": compat}, "uhd-resampler"),),
        PartSpec("uhd-schema"),
        4,
        PartSpec("uhd-slices", views, "views"),
    )


def transparent(stage):
    """Make a resampler return the mean of what its queries see."""
    with torch.no_grad():
        stage.ln_kv, stage.ln_post = nn.Identity(), nn.Identity()
        stage.attn.in_proj_weight.copy_(torch.cat([torch.zeros(8, 4), torch.eye(4)]))
        stage.attn.out_proj.weight.copy_(torch.eye(4))
        stage.proj.copy_(torch.eye(4))
    return stage


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    grid=st.sampled_from([1, 2, 3]),
    compat=st.sampled_from(["official", "fixed"]),
)
def test_tokens_come_out_where_the_map_says(kit, size, grid, compat):
    """Features hold their own centre in the original; each token must agree with its map row."""
    assume(1 < max(size) <= 100 * min(size))
    spec = spec_of(grid, compat)
    table = VistokenImageProcessor(spec.to_dict()).view_table(*size)
    plan = TokenPlan(spec)
    grids = [tuple(int(VIEW.get(v, s)) // 14 for s in ("height", "width")) for v in table]
    # released sampling loses points beyond the border of maps with fewer patches than queries
    assume(compat == "fixed" or min(map(min, grids)) >= grid)
    maps = [(kit.coordinate_map(v, g).float(),) for v, g in zip(table, grids, strict=True)]
    state = ConnectorState(table, anchor_rows(table), maps)
    state.tokens, state.grids = [m[0].flatten(0, 1) for m in maps], grids
    connector, layout = plan.build()
    with torch.no_grad():
        tokens = transparent(connector.stages[0])(state).tokens
    arrangement = plan.arrange(table)
    assert tuple(len(t) for t in tokens) == arrangement.counts
    rows = layout(arrangement.order, tokens, SEPARATORS)
    token_map = arrangement.token_map
    TOKEN.check(token_map)
    kind = TOKEN.get(token_map, "kind")
    visual = kind == TokenKind.VISUAL
    boxes = rectangles(token_map)[visual]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    seen = table[TOKEN.get(token_map, "view")[visual]]
    patch = torch.stack([VIEW.get(seen, "scale_y"), VIEW.get(seen, "scale_x")], -1) * 14
    # half a patch at a border, where no further patch lies, and half of the released shift
    slack = patch * (0.51 if compat == "fixed" else 1.01) + 0.05
    assert ((rows[visual, :2] - kit.offset - centre).abs() <= slack).all()
    assert torch.equal(rows[~visual], SEPARATORS[TOKEN.get(token_map, "learned")[~visual]])
    # every pixel of the original is in the overview's rectangles and in the slices'
    for group in TOKEN.get(token_map, "group").unique().tolist():
        mine = rectangles(token_map[visual & (TOKEN.get(token_map, "group") == group)])
        area = ((mine[:, 2] - mine[:, 0]) * (mine[:, 3] - mine[:, 1])).sum()
        assert area.item() == pytest.approx(size[0] * size[1], rel=0.02, abs=1)
        assert mine.min() >= -0.01
        assert (mine[:, 2:].amax(0) <= torch.tensor(size) + 0.02).all()


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), most=st.integers(1, 9))
def test_separators_follow_slices(height, width, most):
    assume(1 < max(height, width) <= 100 * min(height, width))
    spec = spec_of(grid=2, max_slices=most)
    table = VistokenImageProcessor(spec.to_dict()).view_table(height, width)
    arrangement = TokenPlan(spec).arrange(table)
    kind = TOKEN.get(arrangement.token_map, "kind")
    view = TOKEN.get(arrangement.token_map, "view").tolist()
    slices = len(table) - 1
    rows, cols = (int(VIEW.get(table[-1], name)) for name in ("rows", "cols"))
    if slices == 0:
        assert view == [0] * 4
        return
    marks = torch.nonzero((kind == TokenKind.SEPARATOR) | (kind == TokenKind.NEWLINE)).flatten()
    assert marks.tolist() == [4 + 5 * number for number in range(slices)]
    line = [TokenKind.SEPARATOR] * (cols - 1) + [TokenKind.NEWLINE]
    assert kind[marks].tolist() == line * rows
    assert view == [v for n in range(slices) for v in [n + 1] * 4 + [-1]] + [0] * 4
    learned = TOKEN.get(arrangement.token_map, "learned")
    assert learned[marks].tolist() == ([0] * (cols - 1) + [1]) * rows


def test_token_counts_of_the_paper():
    for grid, size, count in (
        (12, (1008, 672), 1014),
        (8, (1008, 672), 454),
        (12, (2450, 350), 1159),
        (8, (2450, 350), 519),
    ):
        spec = spec_of(grid, size=(336, 336))
        processor = VistokenImageProcessor(spec.to_dict())
        assert len(processor.token_map(*size)) == count


class Words:
    """A tokenizer of given texts."""

    def __init__(self, **table):
        self.table = table

    def encode(self, text, add_special_tokens):
        assert add_special_tokens is False
        return self.table[text.replace(",", "_comma").replace("\n", "_line")]


def test_separator_ids_are_read_behind_a_letter():
    llama = Words(a=[263], a_comma=[263, 29892], a_line=[263, 13])
    options = UhdSchema.options_for({}, llama, 4096)
    assert options == {"comma_id": 29892, "newline_id": 13, "max_tokens": 4096}
    assert UhdSchema.options_for({"max_tokens": 99}, llama, 4096)["max_tokens"] == 99
    with pytest.raises(UsageError, match="comma_id is 11, the tokenizer has 29892"):
        UhdSchema.options_for({"comma_id": 11}, llama, 4096)
    for wrong in ([7], [263, 1, 2], [5, 29892]):
        with pytest.raises(UsageError, match="does not write ',' as one token"):
            separator_id(Words(a=[263], a_comma=wrong), ",")
    tokenizer = load_tokenizer("assets:pico-tokenizer")
    assert tokenizer.decode([separator_id(tokenizer, text) for text in (",", "\n")]) == ",\n"


def test_a_layout_without_ids_says_what_is_missing():
    with pytest.raises(UsageError, match="does not know the ids"):
        UhdSchema(UhdSchemaConfig(), 4).vocabulary_ids()


def test_missing_slices_are_refused():
    spec = spec_of()
    table = VistokenImageProcessor(spec.to_dict()).view_table(100, 150)
    with pytest.raises(UsageError, match="needs every slice of a picture once"):
        TokenPlan(spec).arrange(table[:-1])


def test_more_tokens_than_positions_are_refused_with_the_way_out():
    spec = spec_of(12, max_slices=16)
    fits = PartSpec("uhd-schema", {"max_tokens": 2465})
    short = PartSpec("uhd-schema", {"max_tokens": 2464})
    table = VistokenImageProcessor(spec.to_dict()).view_table(224, 224)
    assert len(table) == 17
    for layout in (fits, short):
        plan = TokenPlan(PipelineSpec(spec.towers, spec.connector, layout, 4, spec.views))
        if layout is fits:
            assert len(plan.arrange(table).order) == 2464
            continue
        with pytest.raises(UsageError, match=r"224x224 pixels becomes 2464 visual tokens \(16 sli"):
            plan.arrange(table)
