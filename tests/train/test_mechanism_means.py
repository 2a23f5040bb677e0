"""What a mechanism writes into `aux` stands in the metrics of training, under its own name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from vistoken.models.decoder import BaseMechanism, MechanismContext, SequenceState
from vistoken.models.decoder import build as decoder_build
from vistoken.models.recipe import load_recipe
from vistoken.train.log_file import read_records
from vistoken.train.mechanism_means import MechanismMeans
from vistoken.train.metrics import Meter
from vistoken.train.run import train

from .stages import configuration


@dataclass(frozen=True)
class ReporterConfig:
    """No options."""


class Reporter(BaseMechanism):
    """Reports a count, a share per head, and a loss that depends on the last layer's output."""

    name, own_cache, config_class = "reporter", False, ReporterConfig

    def __init__(self, config: ReporterConfig, context: MechanismContext) -> None:
        self.last = context.text_config.num_hidden_layers - 1

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        if layer == self.last:
            aux["reporter/visual"] = state.visual.sum()
            aux["reporter/shares"] = torch.tensor([0.25, 0.75])
            aux["reporter/loss/size"] = 0.5 * state.hidden.square().mean()


def test_training_logs_the_means_of_an_interval(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = decoder_build.load_part
    monkeypatch.setattr(
        decoder_build,
        "load_part",
        lambda kind, name: Reporter if name == "reporter" else known(kind, name),
    )
    values = load_recipe("pico").model_dump(mode="json", exclude_none=True)
    values |= {"connector": ["mlp"], "mechanisms": ["reporter"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    stage: dict[str, Any] = {
        "name": "joint",
        "groups": {"connector": {"train": "full", "lr": 1e-3}},
        "steps": 4,
        "log_every": 2,
    }
    config = configuration(
        data, tmp_path / "run", stages=(stage,), recipe=str(tmp_path / "recipe.yaml")
    )
    train(config)
    shown = [r for r in read_records(config.output / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in shown] == [2, 4]
    for record in shown:
        assert record["mechanisms/reporter/visual"] == 16  # one picture a step, a grid of 4x4
        assert record["mechanisms/reporter/shares"] == 0.5
        assert 0 < record["mechanisms/reporter/loss/size"] < record["loss"]


def test_means_begin_again_and_hide_no_metric() -> None:
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.mechanisms.add({"loss/rows": torch.tensor(value, requires_grad=True)})
    meter.mechanisms.add({"questions/x": torch.tensor([2, 4])})
    values = meter.read()
    assert values["mechanisms/loss/rows"] == 3
    assert values["mechanisms/questions/x"] == 3
    assert values["questions"] == 0
    assert not any(name.startswith("mechanisms/") for name in meter.read())


def test_a_mechanism_may_report_now_and_then() -> None:
    means = MechanismMeans()
    means.add({"a/x": torch.tensor(2.0)})
    means.add({})
    assert means.read() == {"mechanisms/a/x": 2.0}
    assert means.read() == {}
