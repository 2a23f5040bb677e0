"""Both pictures for every system of the house."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from vistoken.viz.attention_page import look_page
from vistoken.viz.attention_png import draw_look
from vistoken.viz.fates import tell_story
from vistoken.viz.heat import density
from vistoken.viz.layer_rows import follow_tokens
from vistoken.viz.looking import look_at
from vistoken.viz.story_page import story_page
from vistoken.viz.story_png import draw_story


def loads_nothing(page):
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert all(link.startswith("data:") for link in links), links
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|https?://", page)


def test_attention_of_every_system(system, scene):
    name, model, processor = system
    look = look_at(model, processor, scene, "What is it?", answer="a cup")
    assert "".join(look.words).strip() == "a cup"
    for shares, row in zip(look.shares, look.weights, strict=True):
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert float(row.min()) >= 0
        drawn = shares["picture"] + shares["spatial"] + shares["other visual"]
        assert float(row.sum()) == pytest.approx(drawn, abs=1e-5)
    plan = processor.image_processor.plan
    assert len(look.tokens) == len(plan.token_map(processor.image_processor.view_table(200, 300)))
    heat = density(look.tokens[look.placed], look.weights[:, look.placed], (200, 300))
    assert heat.sum((1, 2)).tolist() == pytest.approx(
        [row["picture"] for row in look.shares], abs=1e-5
    )
    drawn = np.asarray(draw_look(look))
    assert np.unique(drawn.reshape(-1, 3), axis=0).shape[0] > 100
    page = look_page(look, f"a <{name}>")
    loads_nothing(page)
    assert f"a &lt;{name}&gt;" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert np.allclose(data["weights"], look.weights.numpy(), rtol=1e-3, atol=1e-9)
    assert sum(data["drawn"]) == int(look.placed.sum())
    assert page.count('class="word"') == len(look.words)


def test_tokens_of_every_system(system, scene):
    name, model, processor = system
    story = follow_tokens(model, processor, scene, "What is it?")
    geometry = tell_story(
        processor.image_processor.plan, processor.image_processor.view_table(200, 300)
    )
    assert story.counts() == geometry.counts()
    assert sum(story.counts().values()) == len(story.cells)
    assert sum(story.kinds().values()) == len(story.tokens)
    assert len(story.rows) == model.config.text_config.num_hidden_layers
    for row in story.rows:
        assert sum(row.counts().values()) == len(story.tokens)
    gone, keys = (sum(row.counts()[what] for row in story.rows) for what in ("gone", "keys only"))
    if len(model.model.stack) == 0:
        assert (gone, keys) == (0, 0), "without mechanisms every token is a full row throughout"
    assert bool(keys) == ("saisa" in name)
    assert bool(gone) or "yopo" not in name
    assert draw_story(scene, story, name).width > 300
    page = story_page(scene, story, f"a <{name}>")
    loads_nothing(page)
    assert page.count('class="token"') == len(re.findall(r"<title>token ", page))
    assert page.count('class="cell ') == len(story.cells)
