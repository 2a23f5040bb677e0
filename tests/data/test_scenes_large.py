"""Large scenes: small things where the annotation says, questions with one answer, reproducible."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from vistoken.core.errors import DataError, UsageError
from vistoken.data.scenes.large import (
    ANSWERS,
    COLOURS,
    large_scene,
    make_large_scenes,
    rows_of,
)
from vistoken.data.scenes.shapes import ShapeSource
from vistoken.data.schema import read_messages

SIDE = 448


@pytest.fixture(scope="module")
def scene():
    return large_scene(SIDE, random.Random(5), ShapeSource())


def test_things_are_small_apart_and_of_their_own_colour(scene):
    picture, things = scene
    assert picture.size == (SIDE, SIDE)
    assert sorted(thing.kind for thing in things) == sorted([*ANSWERS, *ANSWERS])
    assert sorted(thing.colour for thing in things) == sorted(COLOURS)
    pixels = np.asarray(picture).astype(int)
    taken = np.zeros((SIDE, SIDE), int)
    for thing in things:
        top, left, bottom, right = thing.box
        assert 0.059 * SIDE <= bottom - top == right - left <= 0.084 * SIDE + 1
        taken[top:bottom, left:right] += 1
        inside = pixels[top:bottom, left:right]
        near = np.abs(inside - COLOURS[thing.colour]).sum(-1) < 30
        assert near.mean() > 0.15, thing
        assert thing.answer in ANSWERS[thing.kind]
    assert taken.max() == 1


def test_the_answer_decides_what_is_drawn():
    shapes = ShapeSource()
    seen = {}
    for number in range(60):
        picture, things = large_scene(SIDE, random.Random(number), shapes)
        for thing in things:
            top, left, bottom, right = thing.box
            cut = picture.crop((left, top, right, bottom)).resize((16, 16))
            own = np.abs(np.asarray(cut).astype(int) - COLOURS[thing.colour]).sum(-1) < 90
            seen.setdefault((thing.kind, thing.answer), []).append(own)
    assert set(seen) == {(kind, answer) for kind in ANSWERS for answer in ANSWERS[kind]}
    means = {key: np.mean(masks, axis=0) for key, masks in seen.items()}
    keys = list(means)
    apart = [np.abs(means[a] - means[b]).mean() for a in keys for b in keys if a < b]
    assert min(apart) > 0.02


def test_questions_name_one_thing(scene):
    rows = rows_of("images/val-00001.jpg", scene[1])
    assert len({row["id"] for row in rows}) == len(rows) == 6
    questions = [row["messages"][0]["content"][1]["text"] for row in rows]
    assert len(set(questions)) == 6
    for row, thing in zip(rows, scene[1], strict=True):
        assert row["answer"] == thing.answer
        assert row["messages"][1]["content"][0]["text"] == thing.answer


def test_a_set_is_the_same_again_and_splits_differ(tmp_path):
    for name in ("a", "b"):
        make_large_scenes(tmp_path / name, scenes={"train": 2, "val": 1}, seed=3, size_px=SIDE)
    for file in ("train.jsonl", "val.jsonl", "val.truth.jsonl", "images/train-00001.jpg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a/train.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert len(read_messages(row, "train")) == 2
    sizes = {Image.open(path).size for path in (tmp_path / "a/images").iterdir()}
    assert sizes == {(SIDE, SIDE)}
    train, val = (tmp_path / "a/images" / f"{s}-00000.jpg" for s in ("train", "val"))
    assert train.read_bytes() != val.read_bytes()


def test_what_it_refuses(tmp_path):
    with pytest.raises(UsageError, match="train and val"):
        make_large_scenes(tmp_path / "x", scenes={"style": 2}, seed=0)
    with pytest.raises(UsageError, match="at least 112"):
        make_large_scenes(tmp_path / "x", scenes={"val": 1}, seed=0, size_px=80)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        make_large_scenes(tmp_path / "x", scenes={"val": 1}, seed=0, size_px=SIDE)
