"""Validation, the best checkpoint, and losses that are no numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vistoken.core.errors import DataError, UsageError
from vistoken.core.objectives import StepLoss
from vistoken.train.checkpoints import checkpoints
from vistoken.train.log_file import read_records
from vistoken.train.objectives.next_token import NextToken
from vistoken.train.run import train
from vistoken.train.validation import Validation

from .conftest import row, write_lines
from .stages import JOINT, configuration

STAGE = JOINT | {"needs": None}


@pytest.fixture(scope="module")
def held_out(data, tmp_path_factory):
    path = data / "val.jsonl"
    write_lines(path, [row("v", "images/0.png", "What is it?", "a bowl")])
    return [str(path)]


def test_validation_is_logged_and_changes_nothing(data, held_out, tmp_path):
    plain = configuration(data, tmp_path / "a", [STAGE])
    train(plain)
    stage = STAGE | {"validate_every": 2, "keep_best": "val/loss"}
    config = configuration(data, tmp_path / "b", [stage], validation=held_out)
    report = train(config)
    shown = [r for r in read_records(config.output / "metrics.jsonl") if "val/loss" in r]
    assert [r["step"] for r in shown] == [2, 4, 6]
    assert len({r["val/loss"] for r in shown}) == 3
    assert all("val/exact/name" in r for r in shown)
    best = min(shown, key=lambda r: r["val/loss"])
    assert report.stages[0].best["value"] == best["val/loss"]
    files = [c.output / "stages" / "joint" / "trained.safetensors" for c in (plain, config)]
    first, second = map(load_file, files)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_checkpoint_stays_and_may_be_the_result(data, held_out, tmp_path, monkeypatch):
    values = iter([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    monkeypatch.setattr(Validation, "__call__", lambda *_: {"val/loss": next(values)})
    stage = STAGE | {"save_every": 1, "keep": 1, "keep_best": "val/loss", "finish": "best"}
    config = configuration(data, tmp_path / "a", [stage], validation=held_out)
    train(config)
    folder = config.output / "stages" / "joint"
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-2", "checkpoint-6"]
    (record,) = json.loads((config.output / "run.json").read_text())["stages"]
    assert record["best"] == {
        "checkpoint": "stages/joint/checkpoint-2",
        "step": 2,
        "metric": "val/loss",
        "value": 1.0,
    }
    kept = load_file(folder / "checkpoint-2" / "trained.safetensors")
    result = load_file(folder / "trained.safetensors")
    last = load_file(folder / "checkpoint-6" / "trained.safetensors")
    assert all(torch.equal(result[name], tensor) for name, tensor in kept.items())
    assert not all(torch.equal(result[name], tensor) for name, tensor in last.items())


def test_metrics_to_judge_by_are_checked_before_the_work(data, tmp_path):
    for stage, message in (
        ({"keep_best": "val/loss"}, "needs validation files"),
        ({"validate_every": 5}, "needs validation files"),
        ({"keep_best": "accuracy"}, "keep_best"),
        ({"finish": "best"}, "needs keep_best"),
    ):
        with pytest.raises(UsageError, match=message):
            configuration(data, tmp_path / "a", [STAGE | stage])


def faulty(monkeypatch, step, spoil):
    """From a step on, the loss is spoilt."""
    loss = NextToken.loss

    def spoilt(self, batch):
        found = loss(self, batch)
        return found if batch.clock.step < step else spoil(batch, found)

    monkeypatch.setattr(NextToken, "loss", spoilt)


def infinite_gradient(batch, found):
    """A loss that is a number, with a gradient that is none."""
    weight = next(p for p in batch.model.parameters() if p.requires_grad)
    return StepLoss(found.mean + (weight.flatten()[0] * 0).abs().sqrt(), found.targets)


def no_number(batch, found):
    return StepLoss(found.mean * float("nan"), found.targets)


@pytest.mark.parametrize(
    ("spoil", "what"), [(no_number, "the loss is nan"), (infinite_gradient, "gradient's norm is")]
)
def test_no_weight_is_changed_by_what_is_no_number(data, tmp_path, monkeypatch, spoil, what):
    faulty(monkeypatch, 3, spoil)
    config = configuration(data, tmp_path / "a", [STAGE | {"accumulate": 2, "save_every": 1}])
    with pytest.raises(DataError, match=what) as caught:
        train(config)
    message = str(caught.value)
    assert "at step 3" in message
    assert "'1-0'" in message or "'0-0'" in message or "'2-0'" in message or "'3-0'" in message
    folder = config.output / "stages" / "joint"
    assert f"{folder / 'checkpoint-3'} is the last good one" in message
    kept = load_file(checkpoints(folder)[-1] / "trained.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())
    monkeypatch.undo()
    assert train(config, resume=True).stages[0].steps == 6
