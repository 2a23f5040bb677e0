"""`vistoken train`: runs a configuration or a recipe's own training stages."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import (
    DryRunOption,
    JsonOption,
    counted,
    grouped,
    note,
    quieten,
    say,
    say_json,
    table,
)
from vistoken.cli.run_choice import FromScratchOption, Given, choose_run
from vistoken.core.errors import UsageError

if TYPE_CHECKING:
    from vistoken.train.config import RunConfig
    from vistoken.train.plan import StagePlan
    from vistoken.train.run import RunReport


def train(
    config: Annotated[str, typer.Argument(help="Run configuration (YAML file), or a recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Such as stages.joint.steps=100."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="With a recipe: training file (JSON, JSONL); may be repeated."),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option("--image-root", help="With a recipe: folder of the image paths."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With a recipe: folder of the run (else runs/RECIPE)."),
    ] = None,
    from_scratch: FromScratchOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes", help="With --resume: accept settings that change the result."
        ),
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="auto (CUDA where there is one) or cpu.")
    ] = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train: a recipe's stages in order, each from the one before.

    Every step is a line in metrics.jsonl in the run's folder; the trained model is in its
    folder 'model'.
    """
    if allow_changes and not resume:
        raise UsageError("--allow-changes goes with --resume: a new run has nothing to change")
    _check_device(device)
    quieten()
    given = Given(tuple(data or ()), image_root, output, from_scratch)
    run_config = choose_run(config, given, overrides or [])
    if not dry_run:
        _fetch(run_config)
    from vistoken.cli.progress import Progress
    from vistoken.train.run import train as run

    if not (as_json or dry_run):
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("vistoken").setLevel(logging.INFO)
    with Progress(quiet=as_json) as progress:
        report = run(
            run_config,
            dry_run=dry_run,
            resume=resume,
            allow_changes=allow_changes,
            progress=progress.steps,
        )
    if as_json:
        say_json(_as_json(report, run_config, dry_run))
        return
    _show(report, run_config, dry_run)


def _check_device(device: str) -> None:
    """Hide the GPU from PyTorch before it looks, so that the whole run stays on the CPU."""
    import os

    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device not in ("auto", "cuda"):
        raise UsageError(f"--device {device!r}: training runs on auto, cuda or cpu")
    if device == "cuda":
        from vistoken.models.device import choose_device

        choose_device(device)


def _fetch(config: RunConfig) -> None:
    """Fetch the embedded model's parts, saying so, where a run of nano finds none."""
    from vistoken.convert.nano_parts import ensure_nano_parts

    if config.recipe == "nano":
        ensure_nano_parts(note)


def _as_json(report: RunReport, config: RunConfig, dry_run: bool) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "dry_run": dry_run,
        "stages": [asdict(stage) for stage in report.stages],
        "model": str(report.model) if report.model else None,
    }


def _show(report: RunReport, config: RunConfig, dry_run: bool) -> None:
    for stage in report.stages:
        if not dry_run:
            say(f"stage {stage.name}: {counted(stage.steps, 'step')} in {stage.seconds:.0f} s")
            continue
        rows = [
            (group.name, group.train, group.lr, grouped(group.trainable), grouped(group.total))
            for group in stage.groups
        ]
        table(
            ("part", "train", "learning rate", "trainable", "parameters"),
            rows,
            f"stage {stage.name}: {counted(stage.samples, 'sample')}",
            right="learning rate,trainable,parameters",
        )
        if stage.plan is not None:
            _show_plan(stage.plan)
    if dry_run:
        note("dry run: nothing was written")
        say(f"would write {config.output}")
    else:
        _show_next(report)


def _show_plan(plan: StagePlan) -> None:
    memory = plan.memory
    size = counted(plan.samples_per_step, "sample")
    say(f"{counted(plan.steps, 'step')} of {size}; an ETA comes with the first one")
    say(
        f"{'longest step of this data' if plan.measured else 'a step'}: "
        f"{counted(memory.samples, 'row')} of {memory.sequence:,} tokens, "
        f"{memory.visual_tokens:,} of them a picture's"
    )
    sizes = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "working": memory.working,
    }
    parts = ", ".join(f"{name} {size / 2**30:,.2f}" for name, size in sizes.items())
    say(f"memory on each device, {memory.total / 2**30:,.2f} GiB in all:")
    say(f"  {parts}")


def _show_next(report: RunReport) -> None:
    """Say where the model is and what can be done with it."""
    from vistoken.models.checkpoint import is_light

    if report.model is None:
        return
    say(f"the trained model is in {report.model}")
    say("ask it, or make one directory that needs nothing of this machine:")
    say(f'  vistoken chat --model {report.model} PICTURE "QUESTION"')
    if is_light(report.model):
        say(f"  vistoken merge {report.model} {report.model.parent / 'merged'}")
