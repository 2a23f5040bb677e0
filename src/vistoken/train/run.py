"""Running a configuration: stages in order, each from the one before, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from vistoken.models.checkpoint import merge_adapter, save_full, save_light
from vistoken.train.attention import choose_attention
from vistoken.train.checkpoints import last_checkpoint
from vistoken.train.distributed import connect, is_main, main_first, wait
from vistoken.train.fit import check_tokenizer
from vistoken.train.groups import apply_groups
from vistoken.train.opening import OpenRun, open_run
from vistoken.train.reports import RunReport, StageReport
from vistoken.train.run_folder import (
    DONE,
    MODEL,
    claim,
    describe_run,
    read_changes,
    release,
    write_record,
)
from vistoken.train.settings import RunConfig
from vistoken.train.stage_run import convert_mechanisms, run_stage, start_weights
from vistoken.train.trackers import prepare_trackers
from vistoken.train.trained import read_trained
from vistoken.train.workers import check_workers

__all__ = ["DONE", "MODEL", "RunReport", "StageReport", "last_checkpoint", "train"]


def train(
    config: RunConfig,
    *,
    dry_run: bool = False,
    resume: bool = False,
    allow_changes: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> RunReport:
    """Run a configuration's stages.

    Args:
        config: The run.
        dry_run: Build the model, read the data, work out the groups; train and write nothing.
        resume: Go on in ``config.output`` from its last checkpoint.
        allow_changes: Go on although the configuration differs from the one that the run began
            with; the result is then not that of an uninterrupted run.
        progress: Called with what is being prepared, the number done and the total.

    Raises:
        UsageError: The output folder is in use, or belongs to another configuration.
        DataError: A row, picture or annotation is faulty.
        WeightsError: Weights to start from are missing or do not fit.
        MachineError: A tracker is not installed, processes cannot be forked off for ``workers``, or
            the disk is full.
        Interrupted: SIGINT or SIGTERM came while a stage was training; a checkpoint was written.
    """
    prepare_trackers(config.report_to, config.output)
    check_workers(config.workers)
    connect(cpu=not torch.cuda.is_available())
    if not dry_run:
        with main_first() as main:
            if main:
                claim(config, resume, allow_changes)
    try:
        return _run_stages(config, dry_run, resume, progress)
    except BaseException:
        if not dry_run and is_main():
            release(config)
        raise


def _run_stages(
    config: RunConfig,
    dry_run: bool,
    resume: bool,
    progress: Callable[[str, int, int], None] | None,
) -> RunReport:
    began = time.time()
    run = open_run(config)
    check_tokenizer(run.model, run.processor, config.recipe)
    choose_attention(run.model, config.attention, run.device)
    started = start_weights(run, resume)
    reports = []
    for stage in config.stages:
        if stage.name in started.done:
            # the weights that are read later have this stage's form
            convert_mechanisms(run, stage)
            continue
        reports.append(run_stage(run, stage, started, dry_run, resume, progress))
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
        record |= {
            "wall_s": time.time() - began,
            "changes": read_changes(config.output),
            "stages": [asdict(report) for report in reports],
        }
        write_record(config.output, record)
    wait()
    return RunReport(tuple(reports), out)


def _save(run: OpenRun, out: Path) -> None:
    """Save the result; a light checkpoint refers to language model and towers, if they stayed."""
    model = run.model.eval()
    parts = [stage.group(name) for stage in run.config.stages for name in ("language", "vision")]
    if any(part.train == "full" for part in parts):
        merge_adapter(model)
        save_full(model, run.processor, out)
    else:
        save_light(model, run.processor, out, run.references)
