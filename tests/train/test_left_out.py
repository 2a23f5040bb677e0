"""What a run does not train on: counted once, named in a file, the same however often it stops."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vistoken.core.errors import DataError
from vistoken.data.bad_samples import BadSamples, LeftOut
from vistoken.train import left_out
from vistoken.train.config import parse_config
from vistoken.train.left_out import LeftOutLog
from vistoken.train.run import train
from vistoken.train.trainer import VistokenTrainer

from .conftest import faulty_rows, row, write_lines

STAGE = {
    "name": "joint",
    "groups": {"connector": {"train": "full", "lr": 1e-3}},
    "epochs": 2,
    "save_every": 2,
    "log_every": 1,
    "max_length": 150,
    "too_long": "drop-turns",
    "images_per_step": 2,
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Eight rows: one breaks the schema, one picture is broken, two are too long."""
    root = tmp_path_factory.mktemp("faulty")
    rows = [*faulty_rows(root), row("7", "7.png", "What is it?", "cup") | {"messages": []}]
    write_lines(root / "rows.jsonl", rows)
    return root / "rows.jsonl"


def configuration(faulty, output, policy="skip", validation=(), **stage):
    return parse_config(
        {
            "recipe": "pico",
            "data": [str(faulty)],
            "output": str(output),
            "precision": "float32",
            "on_bad_sample": policy,
            "validation": [str(path) for path in validation],
            "stages": [{**STAGE, **stage}],
        }
    )


@pytest.fixture(scope="module")
def finished(faulty, tmp_path_factory):
    config = configuration(faulty, tmp_path_factory.mktemp("whole") / "run")
    return config, train(config)


EXPECTED = {"bad_samples": 3, "too_long_turns": 2, "too_long_samples": 2}


def test_every_sample_left_out_is_in_the_file_by_its_id(finished):
    config, report = finished
    assert report.stages[0].left_out == EXPECTED
    told = lines(config.output / "left_out.jsonl")
    assert all(line["stage"] == "joint" for line in told)
    assert (told[0]["sample"], told[0]["step"]) == ("7", 0)
    by_sample = {}
    for line in told[1:]:
        by_sample.setdefault(line["sample"], []).append(line["reason"])
        assert f"sample '{line['sample']}'" in line["message"]
        assert 1 <= line["step"] <= report.stages[0].steps
    assert by_sample == {
        "3": ["bad_samples"] * 2,
        "5": ["too_long_turns"] * 2,
        "6": ["too_long_samples"] * 2,
    }
    last = [line for line in lines(config.output / "metrics.jsonl") if "loss" in line][-1]
    assert {key: last[key] for key in EXPECTED} == EXPECTED


def test_what_validation_lacks_is_counted_apart_and_written_once(faulty, tmp_path, monkeypatch):
    held_out = faulty.with_name("held_out.jsonl")
    held_out.write_text("".join(faulty.read_text().splitlines(keepends=True)[:7]))
    good = faulty.with_name("two.jsonl")
    good.write_text("".join(held_out.read_text().splitlines(keepends=True)[:2]))

    def configured(name):
        stage = {"validate_every": 1, "save_every": 1, "epochs": None, "steps": 3}
        return configuration(good, tmp_path / name, validation=[held_out], **stage)

    lacking = {"bad_samples": 1, "too_long_turns": 1, "too_long_samples": 1}
    config = configured("whole")
    report = train(config).stages[0]
    assert report.left_out == dict.fromkeys(EXPECTED, 0)
    assert report.validation_left_out == lacking
    told = lines(config.output / "left_out.jsonl")
    assert [(one["sample"], one["split"], one["step"]) for one in told] == [
        ("3", "validation", 1), ("5", "validation", 1), ("6", "validation", 1)
    ]  # fmt: skip
    passes = [line for line in lines(config.output / "metrics.jsonl") if "val/loss" in line]
    assert len(passes) == 3
    for line in passes:
        assert {key: line[f"val/{key}"] for key in lacking} == lacking
        assert line["bad_samples"] == 0

    step = VistokenTrainer.training_step

    def stop(trainer, *args):
        if trainer.state.global_step == 2:
            raise _Interrupted
        return step(trainer, *args)

    config = configured("stopped")
    with monkeypatch.context() as patch:
        patch.setattr(VistokenTrainer, "training_step", stop)
        with pytest.raises(_Interrupted):
            train(config)
    assert train(config, resume=True).stages[0].validation_left_out == lacking
    assert lines(config.output / "left_out.jsonl") == told

    held_out.write_text(faulty.read_text().splitlines(keepends=True)[3])
    with pytest.raises(DataError, match=r"no validation sample can be used.*sample '3'"):
        train(configured("none"))


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("when", [1, 5])
def test_counts_file_and_weights_survive_an_interruption(
    finished, faulty, tmp_path, monkeypatch, when
):
    config = configuration(faulty, tmp_path / "run")
    step = VistokenTrainer.training_step

    def stop(trainer, *args):
        if trainer.state.global_step == when:
            raise _Interrupted
        return step(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(VistokenTrainer, "training_step", stop)
        with pytest.raises(_Interrupted):
            train(config)
    report = train(config, resume=True)
    assert report.stages[0].left_out == EXPECTED
    whole = finished[0].output
    assert lines(config.output / "left_out.jsonl") == lines(whole / "left_out.jsonl")
    expected = load_file(whole / "stages" / "joint" / "trained.safetensors")
    resumed = load_file(config.output / "stages" / "joint" / "trained.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


def test_nothing_is_left_out_unless_told_so(faulty, tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl, line 8: sample '7'"):
        train(configuration(faulty, tmp_path / "a", policy="error"))
    good = faulty.with_name("good.jsonl")
    good.write_text("".join(faulty.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(DataError, match=r"3\.png"):
        train(configuration(good, tmp_path / "b", policy="error"))


def left(sample, reason="bad_samples", count=1):
    return LeftOut(reason, sample, f"sample {sample!r}", count)


def test_stages_keep_their_own_lines_and_cut_off_ones_go(tmp_path):
    path = tmp_path / "left_out.jsonl"
    first = LeftOutLog(path, "first")
    first.opening.append(left("a"))
    assert first.counts["bad_samples"] == 1
    first.begin()
    first.add(3, [left("b", "too_long_turns", 4)])
    state = first.state()
    first.add(4, [left("c")])
    second = LeftOutLog(path, "second")
    second.begin()
    second.add(1, [left("d")])
    with path.open("a") as file:
        file.write('{"stage": "first", "st')
    again = LeftOutLog(path, "first")
    again.opening.append(left("a"))
    again.load(state)
    again.begin()
    assert again.counts == {"bad_samples": 1, "too_long_turns": 4, "too_long_samples": 0}
    assert [line["sample"] for line in lines(path)] == ["a", "b", "d"]
    fresh = LeftOutLog(path, "first")
    fresh.begin()
    assert [line["sample"] for line in lines(path)] == ["d"]


def test_every_process_has_the_records_of_all(monkeypatch):
    others = [[left("a")], [left("b"), left("c")]]
    monkeypatch.setattr(left_out.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(left_out.dist, "get_world_size", lambda: 2)

    def gather(into, own):
        assert own == others[1]
        into[:] = others

    monkeypatch.setattr(left_out.dist, "all_gather_object", gather)
    assert left_out._of_all_processes(others[1]) == [left("a"), left("b"), left("c")]


def test_somebody_else_can_be_told_for_a_while():
    outer, inner = [], []
    bad = BadSamples("skip", outer.append)
    with bad.telling(inner.append):
        bad.take(DataError("first"), "a")
    bad.take(DataError("second"), "b")
    assert ([one.sample for one in inner], [one.sample for one in outer]) == (["a"], ["b"])
    assert bad.skipped == 2
