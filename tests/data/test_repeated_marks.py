"""Several marks in one turn for one picture: read as one, and said so."""

import json
import logging

import pytest

from vistoken.data.bad_samples import BadSamples
from vistoken.data.check import check_file
from vistoken.data.converting import convert_file
from vistoken.data.schema import image_paths
from vistoken.train.examples import read_examples


def record(name, marks, **fields):
    turns = [{"from": "human", "value": "<image>" * marks + "What?"}, {"from": "gpt", "value": "A"}]
    return {"id": name, "image": "x.png", "conversations": turns, **fields}


@pytest.fixture
def llava(tmp_path, picture):
    for name in ("x.png", "y.png"):
        picture(20, 30).save(tmp_path / name)
    records = [
        record("one", 1),
        record("twice", 2),
        record("thrice", 3, image=["x.png"]),
        record("two pictures", 2, image=["x.png", "y.png"]),
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    return path


def test_a_check_names_the_samples_and_finds_no_fault(llava):
    report = check_file(llava)
    assert not report.kinds
    assert report.warnings == 2
    assert [("'twice'" in w, "'thrice'" in w) for w in report.warned] == [
        (True, False),
        (False, True),
    ]
    assert "turn 1: 3 <image> marks for one picture are read as one" in report.warned[1]
    assert report.to_dict()["warnings"] == 2


def test_marks_without_a_picture_are_a_fault_and_no_warning(llava):
    alone = record("none", 2)
    del alone["image"]
    llava.write_text(json.dumps([alone]))
    report = check_file(llava)
    assert set(report.kinds) == {"placeholder"}
    assert report.warnings == 0


def test_a_conversion_says_it_and_stays_lossless(llava, tmp_path):
    bad = BadSamples()
    convert_file(llava, tmp_path / "b.jsonl", "auto", "schema", bad)
    assert bad.warned == 2
    assert "sample 'twice', turn 1: 2 <image> marks" in bad.first_warned[0]
    convert_file(tmp_path / "b.jsonl", tmp_path / "c.json", "auto", "llava", BadSamples())
    assert json.loads((tmp_path / "c.json").read_text()) == json.loads(llava.read_text())


def test_training_logs_it_once_with_the_number(llava, caplog):
    with caplog.at_level(logging.WARNING):
        examples = read_examples([llava], None)
    assert [len(image_paths(e.messages)) for e in examples] == [1, 1, 1, 2]
    (said,) = [r.getMessage() for r in caplog.records if "<image>" in r.getMessage()]
    assert said.startswith("samples with warnings: 2; ")
    assert "'twice'" in said
