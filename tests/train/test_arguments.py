"""The Trainer's arguments, and trackers with their real packages where these are installed."""

import importlib.util
import os
import socket

import pytest

from vistoken.core.errors import MachineError
from vistoken.train.arguments import training_arguments
from vistoken.train.run import train
from vistoken.train.settings import StageConfig
from vistoken.train.trackers import _HOME, prepare_trackers

from .stages import ALIGN, configuration

STAGE = StageConfig.model_validate(
    {"name": "a", "steps": 3, "accumulate": 2, "groups": {"spatial": {"train": "full"}}}
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """What trackers are told through the environment ends with the test."""
    for variables in _HOME.values():
        for name in variables:
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)


def test_nothing_reports_anywhere_unless_named(tmp_path):
    arguments = training_arguments(STAGE, tmp_path, 7, bf16=False, use_cpu=True)
    assert arguments.report_to == []
    assert (arguments.gradient_accumulation_steps, arguments.data_seed) == (2, 7)
    assert "WANDB_MODE" not in os.environ


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="pip install trackio"):
        prepare_trackers(["trackio"], tmp_path)


def test_a_users_own_setting_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("WANDB_MODE", "online")
    prepare_trackers(["wandb"], tmp_path)
    assert os.environ["WANDB_MODE"] == "online"
    assert os.environ["WANDB_DIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("tracker", "written"),
    [
        ("tensorboard", "stages/align/runs/*/events.out.tfevents.*"),
        ("trackio", "trackio/**/*.db"),
        pytest.param("wandb", "wandb/offline-run-*/run-*.wandb", marks=pytest.mark.slow),
    ],
)
def test_a_real_tracker_writes_into_the_run_and_calls_nobody(
    data, tmp_path, monkeypatch, tracker, written
):
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"needs {tracker}")
    connect = socket.socket.connect

    def at_home(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"{tracker} connects to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", at_home)
    config = configuration(data, tmp_path / "a", [ALIGN], report_to=[tracker])
    train(config)
    assert list(config.output.glob(written))
