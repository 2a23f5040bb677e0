"""What a step reports: the first one's ETA, means without empty micro-batches, scores of now."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from vistoken.train.checkpoints import checkpoints
from vistoken.train.log_file import read_records
from vistoken.train.metrics import Progress
from vistoken.train.run import train

from .conftest import row, write_lines
from .stages import JOINT, configuration

STAGE = JOINT | {"needs": None, "schedule": "constant", "warmup": 0, "questions_per_image": 1}
PLAIN = STAGE | {
    # no dropout; steps follow the gradient's size, not its sign alone
    "groups": {"spatial": {"train": "full", "lr": 1e-2}},
    "eps": 1.0,
    "max_length": 60,
    "too_long": "drop-sample",
}


def lines_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "vistoken.train.metrics"]


def test_the_first_step_says_how_long_the_others_will_take(data, tmp_path, caplog):
    stage = STAGE | {"steps": 4, "log_every": 3, "save_every": 10}
    with caplog.at_level(logging.INFO):
        train(configuration(data, tmp_path / "a", [stage]))
    shown = lines_of(caplog)
    assert shown[0].startswith("joint 1/4 ETA ")
    assert [line.split()[1] for line in shown[1:3]] == ["3/4", "4/4"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(configuration(data, tmp_path / "b", [stage | {"steps": 1, "log_every": 1}]))
    first = [line for line in lines_of(caplog) if line.startswith("joint 1/1 ")]
    assert sum("ETA" in line for line in first) == 1  # the record's own, not another one


def test_an_eta_is_never_behind_the_clocks_end():
    class State:
        global_step, max_steps = 0, 1000

    progress = Progress("a", lambda: 7.0)
    progress.on_train_begin(None, State, None)
    progress._start -= 100  # a step of 100 s
    State.global_step = 1
    assert progress.eta(State) == 7.0


@pytest.fixture(scope="module")
def halved(data):
    """One row that fits, alone and beside one that does not."""
    good = row("good", "images/0.png", "What is it?", "cup")
    long = row("long", "images/1.png", "What is it?", "cup " * 60)
    write_lines(data / "good.jsonl", [good])
    write_lines(data / "both.jsonl", [good, long])
    return data


def trained(folder, output, name, **stage):
    values = {"data": (folder / name,), "image_root": folder}
    config = configuration(folder, output, [PLAIN | stage]).model_copy(update=values)
    train(config)
    records = [r for r in read_records(output / "metrics.jsonl") if "learning_rate" in r]
    return load_file(output / "stages" / "joint" / "trained.safetensors"), records


def test_an_empty_micro_batch_is_no_part_of_the_mean(halved, tmp_path):
    alone, (expected,) = trained(halved, tmp_path / "a", "good.jsonl", steps=1)
    beside, (found,) = trained(halved, tmp_path / "b", "both.jsonl", steps=1, accumulate=2)
    assert found["too_long_samples"] == 1
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    for name, tensor in alone.items():
        torch.testing.assert_close(beside[name], tensor, atol=1e-7, rtol=1e-5)


def test_a_step_without_targets_is_no_loss_of_zero(halved, tmp_path):
    _, (expected,) = trained(halved, tmp_path / "a", "good.jsonl", steps=1)
    _, (found,) = trained(halved, tmp_path / "b", "both.jsonl", steps=2, log_every=2)
    if found["loss"] != pytest.approx(expected["loss"], rel=1e-6):  # the empty step came second
        raise AssertionError(found)
    _, records = trained(halved, tmp_path / "c", "both.jsonl", steps=2, log_every=1)
    assert sorted("loss" in record for record in records) == [False, True]
    assert all("questions" in record for record in records)


def scores(folder):
    return {
        int(c.name.removeprefix("checkpoint-")): json.loads((c / "score.json").read_text())["loss"]
        for c in checkpoints(folder)
    }


@pytest.mark.parametrize(("log", "save", "logged"), [(2, 1, [1, 2, 3, 4]), (3, 2, [2, 3])])
def test_a_checkpoint_is_judged_by_what_was_logged_since_the_one_before(
    data, tmp_path, log, save, logged
):
    stage = STAGE | {"steps": 4, "log_every": log, "save_every": save, "keep": 10}
    config = configuration(data, tmp_path / "a", [stage | {"keep_best": "loss"}])
    train(config)
    losses = {
        r["step"]: r["loss"] for r in read_records(config.output / "metrics.jsonl") if "loss" in r
    }
    assert list(losses) == logged
    for step, score in scores(config.output / "stages" / "joint").items():
        window = [n for n in losses if step - save < n <= step]
        assert score == losses[window[-1]]
