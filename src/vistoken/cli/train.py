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
    grouped,
    note,
    quieten,
    say,
    say_json,
    table,
)
from vistoken.core.errors import UsageError

if TYPE_CHECKING:
    from vistoken.models.recipe import Recipe
    from vistoken.train.config import RunConfig
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
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="With nano: not from its trained weights, but all its stages."
        ),
    ] = False,
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
    given = {"data": data or None, "image_root": image_root, "output": output}
    run_config = _configuration(config, given, from_scratch, overrides or [])
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


def _configuration(
    name: str, given: dict[str, Any], from_scratch: bool, overrides: list[str]
) -> RunConfig:
    from vistoken.models.recipe import load_recipe, recipe_names
    from vistoken.train.config import load_config, recipe_config

    if name in recipe_names() and not Path(name).exists():
        if not given["data"] and not any(override.startswith("data=") for override in overrides):
            raise UsageError(
                f"recipe {name} needs training data: add --data FILE "
                "('vistoken data make scenes' composes some)"
            )
        recipe = load_recipe(name)
        section = recipe.train if from_scratch or not recipe.tune else recipe.tune
        _check_stages(recipe, section, overrides)
        values: dict[str, Any] = {
            "data": [str(path) for path in given["data"] or ()],
            "output": str(given["output"] or Path("runs") / name),
        }
        if given["image_root"] is not None:
            values["image_root"] = str(given["image_root"])
        return recipe_config(name, section, values, overrides)
    if from_scratch or any(given.values()):
        raise UsageError(
            "--data, --image-root, --output and --from-scratch go with a recipe; "
            "a YAML file has them as fields"
        )
    if not name.endswith((".yaml", ".yml")):
        load_recipe(name)  # an unknown recipe: its error suggests near names
    return load_config(Path(name), overrides)


def _check_stages(recipe: Recipe, section: dict[str, Any] | None, overrides: list[str]) -> None:
    """Tell an override of the recipe's other run from a misspelt one."""
    names, others = _stages(section), _stages(recipe.train) | _stages(recipe.tune)
    for override in overrides:
        first, _, rest = override.partition(".")
        stage = rest.partition(".")[0]
        if first == "stages" and stage in others - names:
            how = "leave --from-scratch out" if section is recipe.train else "add --from-scratch"
            raise UsageError(
                f"override {override!r}: this run of {recipe.name} has the stage(s) "
                f"{', '.join(sorted(names))}; for {stage!r} {how}"
            )


def _stages(section: dict[str, Any] | None) -> set[str]:
    return {stage["name"] for stage in (section or {}).get("stages", ())}


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
            say(f"stage {stage.name}: {stage.steps} steps in {stage.seconds:.0f} s")
            continue
        rows = [
            (group.name, group.train, group.lr, grouped(group.trainable), grouped(group.total))
            for group in stage.groups
        ]
        table(
            ("part", "train", "learning rate", "trainable", "parameters"),
            rows,
            f"stage {stage.name}: {stage.samples} samples",
            right="learning rate,trainable,parameters",
        )
    if dry_run:
        note("dry run: nothing was written")
        say(f"would write {config.output}")
    else:
        say(f"the trained model is in {report.model}")
