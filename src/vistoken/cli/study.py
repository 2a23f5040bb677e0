"""`vistoken study FILE -o OUT`: a grid of arms and seeds, trained and asked alike."""

from __future__ import annotations

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
    from vistoken.study.grid import Grid


def study(
    file: Annotated[str, typer.Argument(help="Study (YAML file), or one of the package's.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Change of every arm's recipe."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the study (runs/NAME-SIZE).")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size to run (the study's first one).")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the splits (composed without it).")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Feature cache (in the output).")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Cell ARM/SEED, or ARM; may be repeated.")
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train every arm of a study at every seed, ask all of them, and write one table.

    Finished cells are left alone and a killed one goes on: run the same command again.
    """
    quieten()
    from vistoken.cli.progress import Progress
    from vistoken.study.grid import make_grid
    from vistoken.study.report import markdown
    from vistoken.study.run import run_study
    from vistoken.study.settings import load_study

    grid = make_grid(load_study(file), size, read_changes(changes or []))
    out = output or Path("runs") / f"{grid.study.name}-{grid.size_name}"
    if dry_run:
        _plan(grid, out, [cell.name for cell in grid.only(only or [])], as_json)
        return
    with Progress(quiet=as_json) as progress:
        report = run_study(
            grid, out, data=data, cache=cache, only=only or [], progress=progress.steps
        )
    if as_json:
        say_json(report)
    else:
        say(markdown(report))
        note(f"written to {out}: study.json, study.md, study.html")


def read_changes(texts: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE, the value in YAML.

    Raises:
        UsageError: Another form.
    """
    import yaml

    changes = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{text!r} must look like train.stages.joint.steps=100")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"{text!r}: the value is not valid YAML") from error
    return changes


def _plan(grid: Grid, out: Path, cells: list[str], as_json: bool) -> None:
    from vistoken.study.costs import predict

    arms = {arm: predict(grid.arm_recipe(arm), grid.study.picture) for arm in grid.arms}
    done = [
        c.name for c in grid.cells if (out / "cells" / c.arm / str(c.seed) / "cell.json").is_file()
    ]
    if as_json:
        shown = {"study": grid.study.name, "size": grid.size_name, "output": str(out)}
        say_json({"dry_run": True, **shown, "arms": arms, "cells": cells, "finished": done})
        return
    rows = [
        (
            arm,
            cost["visual_tokens"],
            grouped(cost["parameters"]["connector"]),
            grouped(cost["parameters"]["spatial"]),
            grouped(cost["connect_flops"]),
            grouped(cost["prefill_flops"]),
            grouped(cost["train_flops"]),
        )
        for arm, cost in arms.items()
    ]
    heads = ("arm", "visual tokens", "connector", "spatial", "connect FLOPs", "prefill FLOPs",
             "training FLOPs")  # fmt: skip
    table(heads, rows, f"{grid.study.name}, size {grid.size_name}", right=", ".join(heads[1:]))
    note("dry run: nothing was written")
    say(f"would run {len(cells)} cells in {out} ({len(done)} finished): {', '.join(cells)}")
