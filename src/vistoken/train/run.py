"""Running a configuration: stages in order, each from the one before, resumable."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch

from vistoken.core.errors import WeightsError
from vistoken.data.reading import BadSamples
from vistoken.models.checkpoint import merge_adapter, save_full, save_light
from vistoken.models.conversion import convert_mechanism
from vistoken.train.arguments import training_arguments
from vistoken.train.checkpoints import last_checkpoint
from vistoken.train.distributed import connect, is_main, main_first, wait
from vistoken.train.groups import GroupRow, apply_groups, format_table
from vistoken.train.left_out import LEFT_OUT, LeftOutLog
from vistoken.train.objectives import find_objective
from vistoken.train.opening import OpenRun, open_run, stage_encoder
from vistoken.train.run_folder import (
    DONE,
    METRICS,
    MODEL,
    claim,
    describe_run,
    write_record,
)
from vistoken.train.samples import CachedEncoder, SceneCollator
from vistoken.train.settings import RunConfig, StageConfig
from vistoken.train.stage_data import fill_cache, name_space, probe_pictures, stage_items
from vistoken.train.standardise import standardise
from vistoken.train.trained import TRAINED, read_trained, write_atomically, write_trained
from vistoken.train.trainer import VistokenTrainer

__all__ = ["DONE", "MODEL", "RunReport", "StageReport", "last_checkpoint", "train"]

logger = logging.getLogger(__name__)

_STANDARDISE_ON = 256


@dataclass(frozen=True)
class StageReport:
    """What a stage trains, or trained.

    Attributes:
        name: The stage.
        groups: What is trained, part by part.
        samples: Samples of one pass over the data.
        left_out: Samples and rounds that were not trained on, by reason.
        steps: Optimiser steps done; 0 in a dry run.
        seconds: Wall time of the training loop.
    """

    name: str
    groups: tuple[GroupRow, ...]
    samples: int
    steps: int = 0
    seconds: float = 0.0
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        stages: Its stages, in order.
        model: Folder of the trained model; None in a dry run.
    """

    stages: tuple[StageReport, ...]
    model: Path | None


def train(
    config: RunConfig,
    *,
    dry_run: bool = False,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> RunReport:
    """Run a configuration's stages.

    Args:
        config: The run.
        dry_run: Build the model, read the data, work out the groups; train and write nothing.
        resume: Go on in ``config.output`` from its last checkpoint.
        progress: Called with what is being prepared, the number done and the total.

    Raises:
        UsageError: The output folder is in use, or belongs to another configuration.
        DataError: A row, picture or annotation is faulty.
        WeightsError: Weights to start from are missing or do not fit.
    """
    connect(cpu=not torch.cuda.is_available())
    if not dry_run:
        with main_first() as main:
            if main:
                claim(config, resume)
    began = time.time()
    run = open_run(config)
    started = _start_weights(run, resume)
    reports = []
    for stage in config.stages:
        if started.skips(stage):
            _convert(run, stage)  # the weights that are read later have this stage's form
            continue
        report = _run_stage(run, stage, started, dry_run, resume, progress)
        reports.append(report)
    if dry_run:
        return RunReport(tuple(reports), None)
    if started.weights is not None:  # every stage was done before this session
        apply_groups(run.model, config.stages[-1])
        read_trained(run.model, started.weights)
    out = config.output / MODEL
    if is_main():
        if not (out.is_dir() and any(out.iterdir())):
            _save(run, out)
        record = describe_run(config, run.device, run.bf16)
        record |= {"wall_s": time.time() - began, "stages": [asdict(report) for report in reports]}
        write_record(config.output, record)
    wait()
    return RunReport(tuple(reports), out)


class _Started:
    """Which stages are done, and what the next one starts from."""

    def __init__(self, done: list[str], weights: Path | None) -> None:
        self.done = set(done)
        self.weights = weights

    def skips(self, stage: StageConfig) -> bool:
        """Whether a stage is done already; weights of the last one are still to be loaded."""
        return stage.name in self.done

    def check(self, stage: StageConfig, init: Path | None) -> None:
        """Refuse a stage whose earlier stage is missing."""
        if stage.needs is not None and stage.needs not in self.done and init is None:
            raise WeightsError(
                f"stage {stage.name!r} needs the weights of stage {stage.needs!r}; put that stage "
                "before it, or set init to the folder of one that is finished"
            )


def _start_weights(run: OpenRun, resume: bool) -> _Started:
    done: list[str] = []
    weights: Path | None = None
    if run.config.init is not None:
        weights = run.config.init / TRAINED
        if not weights.is_file():
            raise WeightsError(
                f"init: {weights} does not exist; name the folder of a finished stage, "
                "such as runs/first/stages/align"
            )
    if resume:
        for stage in run.config.stages:
            if (run.folder(stage) / DONE).is_file():
                done.append(stage.name)
                weights = run.folder(stage) / TRAINED
    return _Started(done, weights)


def _run_stage(
    run: OpenRun,
    stage: StageConfig,
    started: _Started,
    dry_run: bool,
    resume: bool,
    progress: Callable[[str, int, int], None] | None,
) -> StageReport:
    started.check(stage, run.config.init)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)
        table = apply_groups(run.model, stage)
    if started.weights is not None:
        read_trained(run.model, started.weights, others_allowed=True)
        started.weights = None
    if stage.mechanisms:
        _convert(run, stage)
        table = apply_groups(run.model, stage)
    encode = stage_encoder(run, stage)
    left_out = LeftOutLog(run.config.output / LEFT_OUT, stage.name)
    bad = BadSamples(run.config.on_bad_sample, left_out.opening.append)
    data = stage_items(run.config, stage, bad)
    probe = probe_pictures(run.config, stage)
    report = StageReport(stage.name, tuple(table), len(data.items), left_out=left_out.counts)
    logger.info("stage %s, %d samples\n%s", stage.name, len(data.items), format_table(table))
    started.done.add(stage.name)
    if dry_run:
        return report
    unreadable: set[Path] = set()
    if isinstance(encode, CachedEncoder):
        skip = run.config.on_bad_sample == "skip"
        unreadable = fill_cache(encode.cache, data.images, skip, progress)
        unreadable |= fill_cache(encode.cache, [picture.image for picture in probe], skip, progress)
    run.model.to(run.device)
    readable = (image for image in data.images if image not in unreadable)
    standardise(run.model, encode, list(islice(readable, _STANDARDISE_ON)))
    folder = run.folder(stage)
    objective = find_objective(stage.objective)
    collate = objective.collator(stage, run.processor, encode, bad)
    trainer = VistokenTrainer(
        run.model,
        training_arguments(
            stage,
            folder,
            run.config.seed,
            run.bf16,
            use_cpu=run.device.type == "cpu",
            report_to=run.config.report_to,
        ),
        stage,
        data.items,
        collate,
        run.config.output / METRICS,
        name_space(run.config, stage, run.model, run.processor, probe),
        probe,
        SceneCollator(encode),
        data.lengths,
        left_out,
    )
    checkpoint = last_checkpoint(folder) if resume else None
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    report = StageReport(
        stage.name,
        tuple(table),
        len(data.items),
        result.global_step,
        trainer.elapsed,
        left_out.counts,
    )
    final = {**asdict(report), **trainer.retrieve_names(), **trainer.meter.read()}
    if is_main():
        write_trained(run.model, folder / TRAINED)
        write_atomically(folder / DONE, (json.dumps(final, indent=2) + "\n").encode())
    wait()
    return report


def _convert(run: OpenRun, stage: StageConfig) -> None:
    """Bring decoder mechanisms into the form in which a stage trains them."""
    for name, options in stage.mechanisms.items():
        convert_mechanism(run.model, name, options)


def _save(run: OpenRun, out: Path) -> None:
    """Save the result; a light checkpoint refers to language model and towers, if they stayed."""
    model = run.model.eval()
    parts = [stage.group(name) for stage in run.config.stages for name in ("language", "vision")]
    if any(part.train == "full" for part in parts):
        merge_adapter(model)
        save_full(model, run.processor, out)
    else:
        save_light(model, run.processor, out, run.references)
