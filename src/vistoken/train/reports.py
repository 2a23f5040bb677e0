"""What a run and its stages say that they did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistoken.train.groups import GroupRow
from vistoken.train.plan import StagePlan


@dataclass(frozen=True)
class StageReport:
    """What a stage trains, or trained.

    Attributes:
        name: The stage.
        groups: What is trained, part by part.
        samples: Samples of one pass over the data.
        left_out: Samples and rounds that were not trained on, by reason.
        validation_left_out: Those that the last validation lacked; empty where there was none.
        steps: Optimiser steps done; 0 in a dry run.
        seconds: Wall time of the training loop.
        best: With ``keep_best``: the best checkpoint, its step, the metric and its value.
        plan: In a dry run: steps and memory.
    """

    name: str
    groups: tuple[GroupRow, ...]
    samples: int
    steps: int = 0
    seconds: float = 0.0
    left_out: dict[str, int] = field(default_factory=dict)
    validation_left_out: dict[str, int] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    plan: StagePlan | None = None


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        stages: Its stages, in order.
        model: Folder of the trained model; None in a dry run.
    """

    stages: tuple[StageReport, ...]
    model: Path | None
