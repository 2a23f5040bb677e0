"""Trackers beside `metrics.jsonl`: into the run's own folder, off the network.

Whoever wants their tracker's server says so in the tracker's own way, before the run starts:
``WANDB_MODE=online``, ``TRACKIO_SPACE_ID=...``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from vistoken.core.errors import MachineError

_HOME = {
    "tensorboard": {},  # the Trainer has it write into the stage's folder
    "trackio": {"TRACKIO_DIR": "{folder}/trackio", "GRADIO_ANALYTICS_ENABLED": "False"},
    "wandb": {
        "WANDB_MODE": "offline",
        "WANDB_DIR": "{folder}",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
    },
}


def prepare_trackers(trackers: Sequence[str], folder: Path) -> None:
    """Check that trackers are installed, and keep them local unless their user has said otherwise.

    Args:
        trackers: Names of the trackers.
        folder: The run's folder, where they write.

    Raises:
        MachineError: A tracker's package is not installed.
    """
    for tracker in trackers:
        if importlib.util.find_spec(tracker) is None:
            raise MachineError(
                f"report_to: {tracker} is not installed; pip install {tracker}, or "
                "'vistoken[track]' for every tracker"
            )
        for variable, value in _HOME[tracker].items():
            os.environ.setdefault(variable, value.format(folder=folder.absolute()))
