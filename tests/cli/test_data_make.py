"""`vistoken data make --set`: named sets and their sizes."""

import json

SET = ("--set", "vistoken-scenes-v1")


def test_a_named_set_has_the_splits_that_were_asked_for(vistoken, tmp_path):
    out = tmp_path / "set"
    sizes = ("--scenes", "train=2", "--scenes", "reading=1")
    outcome = vistoken(
        "data", "make", out, *SET, "--source", "shapes", "--size", 112, *sizes, "--json"
    )
    assert outcome.data["set"] == "vistoken-scenes-v1"
    assert outcome.data["scenes"] == {"train": 2, "reading": 1}
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert {row["phrasing"] for row in rows} == {"seen"}
    assert not (out / "val.jsonl").exists()


def test_a_named_set_has_a_full_size(vistoken, tmp_path):
    outcome = vistoken("data", "make", tmp_path / "set", *SET, "--dry-run", "--json")
    assert outcome.data["scenes"]["train"] >= 10_000
    assert "photographs" in outcome.data["scenes"]
    words = (*SET, "--source", "shapes", "--dry-run", "--json")
    outcome = vistoken("data", "make", tmp_path / "set", *words)
    assert "photographs" not in outcome.data["scenes"]


def test_sizes_that_make_no_sense_are_refused(vistoken, tmp_path):
    out = tmp_path / "set"
    vistoken("data", "make", out, "--scenes", "train=2").failed(2, "--set")
    vistoken("data", "make", out, *SET, "--train", 2).failed(2, "--scenes")
    vistoken("data", "make", out, *SET, "--scenes", "trains=2").failed(2, "'train'")
    vistoken("data", "make", out, *SET, "--scenes", "train").failed(2, "train=100")
    vistoken("data", "make", out, "--set", "scenes").failed(2, "vistoken-scenes-v1")
    assert not out.exists()
