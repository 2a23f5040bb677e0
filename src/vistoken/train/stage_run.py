"""One stage of a run: from what came before it to its finished weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from vistoken.core.errors import Interrupted, UsageError, WeightsError
from vistoken.core.files import write_atomically
from vistoken.data.bad_samples import BadSamples
from vistoken.models.conversion import convert_mechanism
from vistoken.train.arguments import training_arguments
from vistoken.train.checkpoints import Best, best_checkpoint, last_checkpoint
from vistoken.train.distributed import is_main, wait
from vistoken.train.encoders import Encoder
from vistoken.train.feeds import FEEDS
from vistoken.train.groups import apply_groups, format_table
from vistoken.train.left_out import LEFT_OUT, LeftOutLog
from vistoken.train.objectives import find_objective
from vistoken.train.opening import OpenRun, stage_encoder
from vistoken.train.plan import plan_stage
from vistoken.train.reports import StageReport
from vistoken.train.run_folder import DONE, METRICS
from vistoken.train.samples import CachedEncoder, SceneCollator
from vistoken.train.settings import StageConfig
from vistoken.train.stage_data import StageData, fill_cache, name_space, read_stage
from vistoken.train.standardise import standardise
from vistoken.train.trained import TRAINED, read_trained, write_trained
from vistoken.train.trainer import VistokenTrainer

logger = logging.getLogger(__name__)

_STANDARDISE_ON = 256
Tell = Callable[[str, int, int], None]
"""Told what is being prepared, the number done and the total."""


@dataclass
class Started:
    """Which stages are done, and what the next one starts from."""

    done: set[str]
    weights: Path | None

    def check(self, stage: StageConfig, init: Path | None) -> None:
        """Refuse a stage whose earlier stage is missing."""
        if stage.needs is not None and stage.needs not in self.done and init is None:
            raise WeightsError(
                f"stage {stage.name!r} needs the weights of stage {stage.needs!r}; put that stage "
                "before it, or set init to the folder of one that is finished"
            )


def start_weights(run: OpenRun, resume: bool) -> Started:
    """What is done already, and the weights to begin with.

    Raises:
        WeightsError: ``init`` names no finished stage.
    """
    started = Started(set(), None)
    if run.config.init is not None:
        started.weights = run.config.init / TRAINED
        if not started.weights.is_file():
            raise WeightsError(
                f"init: {started.weights} does not exist; name the folder of a finished stage, "
                "such as runs/first/stages/align"
            )
    if resume:
        for stage in run.config.stages:
            if (run.folder(stage) / DONE).is_file():
                started.done.add(stage.name)
                started.weights = run.folder(stage) / TRAINED
    return started


def run_stage(
    run: OpenRun,
    stage: StageConfig,
    started: Started,
    dry_run: bool,
    resume: bool,
    progress: Tell | None,
) -> StageReport:
    """Run a stage, or with ``dry_run`` only say what it would train on.

    Raises:
        Interrupted: A signal came; a checkpoint holds all that was done.
    """
    run = run.for_stage(stage)
    started.check(stage, run.config.init)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)
        table = apply_groups(run.model, stage)
    if started.weights is not None:
        read_trained(run.model, started.weights, others_allowed=True)
        started.weights = None
    if stage.mechanisms:
        convert_mechanisms(run, stage)
        table = apply_groups(run.model, stage)
    encode = stage_encoder(run, stage)
    left_out = LeftOutLog(run.config.output / LEFT_OUT, stage.name)
    bad = BadSamples(run.config.on_bad_sample, left_out.opening.append)
    data = read_stage(run.config, stage, bad)
    report = StageReport(stage.name, tuple(table), len(data.items), left_out=left_out.counts)
    logger.info("stage %s, %d samples\n%s", stage.name, len(data.items), format_table(table))
    started.done.add(stage.name)
    if dry_run:
        return replace(report, plan=plan_stage(run, stage, data))
    _prepare(run, encode, data, progress)
    folder = run.folder(stage)
    trainer = _trainer(run, stage, data, encode, bad, left_out)
    checkpoint = last_checkpoint(folder) if resume else None
    with trainer.interrupt.listening():
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    received = trainer.interrupt.received
    if received is not None and result.global_step < trainer.state.max_steps:
        raise Interrupted(
            f"stopped by {received.name} in stage {stage.name!r} after step {result.global_step}; "
            "add --resume to go on from its checkpoint",
            received,
        )
    best = _best(stage, folder)
    if best is not None and stage.finish == "best":
        read_trained(run.model, best.path / TRAINED)
        trainer.held_out.forget()
    report = replace(
        report,
        steps=result.global_step,
        seconds=trainer.elapsed,
        left_out=left_out.counts,
        validation_left_out=left_out.validation_counts,
        best=_as_record(best, run.config.output),
    )
    retrieval = trainer.held_out.measure("retrieval", result.global_step)
    final = {**asdict(report), **retrieval, **trainer.meter.read()}
    if is_main():
        write_trained(run.model, folder / TRAINED)
        write_atomically(folder / DONE, (json.dumps(final, indent=2) + "\n").encode())
    wait()
    if received is not None:
        raise Interrupted(
            f"stopped by {received.name} after stage {stage.name!r}; add --resume to go on",
            received,
        )
    return report


def convert_mechanisms(run: OpenRun, stage: StageConfig) -> None:
    """Bring decoder mechanisms into the form in which a stage trains them."""
    for name, options in stage.mechanisms.items():
        convert_mechanism(run.model, name, options)


def _prepare(run: OpenRun, encode: Encoder, data: StageData, progress: Tell | None) -> None:
    """Encode the pictures ahead where they are cached, and standardise the features."""
    unreadable: set[Path] = set()
    if isinstance(encode, CachedEncoder):
        skip = run.config.on_bad_sample == "skip"
        unreadable = fill_cache(encode.cache, data.images, skip, progress)
        unreadable |= fill_cache(encode.cache, data.measured_images, skip, progress)
    run.model.to(run.device)
    readable = (image for image in data.images if image not in unreadable)
    standardise(run.model, encode, list(islice(readable, _STANDARDISE_ON)))


def _trainer(
    run: OpenRun,
    stage: StageConfig,
    data: StageData,
    encode: Encoder,
    bad: BadSamples,
    left_out: LeftOutLog,
) -> VistokenTrainer:
    feed = FEEDS[find_objective(stage.objective).rows]
    collate = feed.collator(stage, run.processor, encode, bad)
    arguments = training_arguments(
        stage,
        run.folder(stage),
        run.config.seed,
        run.bf16,
        use_cpu=run.device.type == "cpu",
        report_to=run.config.report_to,
        workers=run.config.workers,
    )
    return VistokenTrainer(
        run.model,
        arguments,
        stage,
        data.items,
        collate,
        run.config.output / METRICS,
        name_space(run.config, stage, run.model, run.processor, data.named),
        data.probe,
        SceneCollator(encode),
        data.lengths,
        left_out,
        data.held_out,
    )


def _best(stage: StageConfig, folder: Path) -> Best | None:
    if stage.keep_best is None:
        return None
    best = best_checkpoint(folder, stage.keep_best)
    if best is None and stage.finish == "best":
        raise UsageError(
            f"stage {stage.name!r}: no checkpoint has the metric {stage.keep_best!r} to judge by; "
            "resume with finish: last, or with a keep_best that metrics.jsonl shows"
        )
    if best is None:
        logger.warning("no checkpoint has the metric %r, none is the best", stage.keep_best)
    return best


def _as_record(best: Best | None, output: Path) -> dict[str, Any] | None:
    if best is None:
        return None
    record = asdict(best)
    return {"checkpoint": str(record.pop("path").relative_to(output)), **record}
