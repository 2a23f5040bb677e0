"""The data of a study: composed once, cut to the wanted kinds, refused where something lacks."""

from __future__ import annotations

import json

import pytest

from vistoken.core.errors import DataError, UsageError
from vistoken.study.data import prepare
from vistoken.study.settings import Data


def kinds(path):
    return {json.loads(line)["kind"] for line in path.read_text("utf-8").splitlines()}


def test_wanted_kinds_of_given_splits(splits, tmp_path):
    data = Data(tasks=("val",), kinds=("colour",))
    files = prepare(data, splits, tmp_path / "out", None)
    assert kinds(files.train) == kinds(files.tasks[0]) == {"colour"}
    assert files.root == splits
    assert kinds(splits / "train.jsonl") == {"colour", "caption"}  # what was given stays
    everything = prepare(Data(tasks=("val",)), splits, tmp_path / "out", None)
    assert everything.train == splits / "train.jsonl"
    assert everything.digests() != files.digests()


def test_what_it_refuses(splits, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"style.jsonl does not exist; the study needs"):
        prepare(Data(tasks=("style",)), splits, out, None)
    with pytest.raises(DataError, match="no question of the kinds reading"):
        prepare(Data(kinds=("reading",)), splits, out, None)
    with pytest.raises(UsageError, match="--data"):
        prepare(Data(), None, out, None)


@pytest.mark.parametrize("name", ["plain", "vistoken-scenes-v1"])
def test_scenes_are_composed_once(tmp_path, name):
    data = Data(set=name, source="shapes", scenes={"train": 2, "val": 1}, kinds=("count",))
    files = prepare(data, None, tmp_path, None)
    assert files.train.with_suffix(".scenes.jsonl").is_file()
    made = (files.root / "train.jsonl").stat().st_mtime_ns
    again = prepare(data, None, tmp_path, None)
    assert again == files
    assert (files.root / "train.jsonl").stat().st_mtime_ns == made
