"""What a stage would do, worked out before it starts: steps, the longest of them, memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist

from vistoken.data.bad_samples import BadSamples
from vistoken.models.cost import empty_model
from vistoken.train.encoders import PixelEncoder
from vistoken.train.examples import ScenePicture
from vistoken.train.feeds import FEEDS
from vistoken.train.memory import StageMemory, predict_memory
from vistoken.train.objectives import find_objective
from vistoken.train.opening import OpenRun
from vistoken.train.packing import PackedBatch
from vistoken.train.scenes import vocabulary
from vistoken.train.settings import StageConfig
from vistoken.train.stage_data import StageData


@dataclass(frozen=True)
class StagePlan:
    """Steps and memory of a stage.

    Attributes:
        steps: Optimiser steps.
        samples_per_step: Samples of a step on all devices.
        memory: On each device, at the longest micro-batch; its ``sequence`` is that one's row.
        measured: Whether the longest micro-batch was made from the data, or is a setting.
    """

    steps: int
    samples_per_step: int
    memory: StageMemory
    measured: bool


def plan_stage(run: OpenRun, stage: StageConfig, data: StageData) -> StagePlan:
    """Work out what a stage does; the model is not run.

    Args:
        run: The run.
        stage: The stage.
        data: What it would draw batches from.
    """
    devices = dist.get_world_size() if dist.is_initialized() else 1
    longest = _longest_batch(run, stage, data)
    spec = run.processor.image_processor.spec
    rows = length = supervised = None
    if longest is not None:
        rows, length = longest.input_ids.shape
        supervised = max(len(longest.targets) // rows, 1)
        table = spec.view_function().view_table(*spec.towers[0].size)
        length = max(length, len(run.model.model.plan.arrange(table).order) + 1)
    memory = predict_memory(
        empty_model(run.model.config),
        spec,
        stage,
        bf16=run.bf16,
        length=length,
        supervised=supervised,
        samples=rows,
        words=_words(stage, data),
        cached=run.cache is not None,
        devices=devices,
    )
    return StagePlan(
        count_steps(stage, len(data.items), devices),
        stage.images_per_step * stage.accumulate * devices,
        memory,
        longest is not None,
    )


def count_steps(stage: StageConfig, samples: int, devices: int = 1) -> int:
    """Optimiser steps of a stage over so many samples."""
    if stage.steps is not None:
        return stage.steps
    batches = math.ceil(samples / (stage.images_per_step * devices))
    return math.ceil((stage.epochs or 1.0) * math.ceil(batches / stage.accumulate))


def _words(stage: StageConfig, data: StageData) -> int | None:
    """Words of a stage's annotations; None where it learns from something else."""
    if find_objective(stage.objective).rows != "scenes":
        return None
    pictures: list[ScenePicture] = [*data.items, *data.named]
    return len(vocabulary([picture.scene for picture in pictures]))


def _longest_batch(run: OpenRun, stage: StageConfig, data: StageData) -> PackedBatch | None:
    """The micro-batch of the samples with the most words; None where none is tokenised."""
    if not len(data.lengths):
        return None
    order = np.argsort(-np.abs(np.asarray(data.lengths)), kind="stable")[: stage.images_per_step]
    feed = FEEDS[find_objective(stage.objective).rows]
    # what cannot be read is the run's to report
    collate = feed.collator(stage, run.processor, PixelEncoder(run.processor), BadSamples("skip"))
    batch: PackedBatch | None = collate([data.items[int(index)] for index in order])["batch"]
    return batch
