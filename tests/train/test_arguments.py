import importlib.util

import pytest

from vistoken.core.errors import MachineError
from vistoken.train.arguments import training_arguments
from vistoken.train.settings import StageConfig

STAGE = StageConfig.model_validate(
    {"name": "a", "steps": 3, "accumulate": 2, "groups": {"spatial": {"train": "full"}}}
)


def test_nothing_reports_anywhere_unless_named(tmp_path):
    arguments = training_arguments(STAGE, tmp_path, 7, bf16=False, use_cpu=True)
    assert arguments.report_to == []
    assert (arguments.gradient_accumulation_steps, arguments.data_seed) == (2, 7)


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="pip install trackio"):
        training_arguments(STAGE, tmp_path, 0, bf16=False, use_cpu=True, report_to=("trackio",))
