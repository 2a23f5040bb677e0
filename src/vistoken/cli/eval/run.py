"""`vistoken eval MODEL TASK.jsonl -o RESULTS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import (
    DeviceOption,
    DryRunOption,
    DtypeOption,
    JsonOption,
    Quantization,
    check_choice,
    note,
    quieten,
    say,
    say_json,
    table,
)
from vistoken.core.errors import UsageError

if TYPE_CHECKING:
    from vistoken.eval.run import EvalOptions
    from vistoken.eval.tasks import Task


def run(
    model: Annotated[str, typer.Argument(help="Recipe name, checkpoint directory or hub id.")],
    tasks: Annotated[list[Path], typer.Argument(metavar="TASK...", help="Task files (JSONL).")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the results; a run goes on in it.")
    ],
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the image paths (each file's own).")
    ] = None,
    grey: Annotated[
        bool, typer.Option("--grey", help="Also ask about a grey picture of the same size.")
    ] = False,
    grey_limit: Annotated[
        int | None,
        typer.Option(min=0, help="Grey pictures for only the first pictures of each task."),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(help="Training file whose commonest answers are the prior (the task itself)."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="forced (one pass per picture) or generate; the same result.")
    ] = "forced",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 64,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first pictures of each task.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Feature cache, as `train` fills it.")] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KIND,...", help="A further row: several kinds together."),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: Annotated[
        Quantization | None, typer.Option(help="Weights of the language model: int8 or nf4.")
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a model the questions of task files; exact match of the greedy answer, by kind.

    Every answered question is a line in samples.jsonl; a run that was killed goes on where it was.
    """
    quieten()
    from vistoken.cli.sources import check_model, load_model
    from vistoken.eval.answering import METHODS
    from vistoken.eval.run import EvalOptions, evaluate, summary_text
    from vistoken.eval.tasks import read_answers, read_tasks

    check_choice("--method", method, METHODS)
    check_model(model)
    options = EvalOptions(
        method,  # type: ignore[arg-type]  # checked above
        max_new_tokens,
        grey,
        grey_limit,
        prior,
        limit,
        cache,
        read_groups(group or []),
    )
    read = read_tasks(tasks, image_root, limit)
    if prior is not None:
        read_answers(prior)  # faulty files are found before the model is loaded
    if dry_run:
        _plan(model, read, output, options, as_json)
        return
    from vistoken.cli.progress import Progress

    loaded = load_model(model, device, dtype, quantization)
    with Progress(quiet=as_json) as progress:
        summary = evaluate(*loaded, read, output, options, model, progress.steps)
    if as_json:
        say_json(summary)
        return
    say(summary_text(summary).rstrip())
    note(f"{summary['asked_now']} questions in {summary['seconds']:.0f} s, written to {output}")


def read_groups(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read NAME=KIND,KIND of --group.

    Raises:
        UsageError: Another form.
    """
    groups = {}
    for text in texts:
        name, equals, kinds = text.partition("=")
        if not (name and equals and kinds):
            raise UsageError(f"--group {text!r} must look like naming=name1,nameN")
        groups[name] = tuple(kind.strip() for kind in kinds.split(","))
    return groups


def _plan(
    model: str, tasks: Sequence[Task], output: Path, options: EvalOptions, as_json: bool
) -> None:
    from vistoken.eval.records import Results

    results = Results(output)
    found = results.records()
    done = len(found)
    planned: dict[str, Any] = {
        task.name: dict(sorted(Counter(question.kind for question in task.questions).items()))
        for task in tasks
    }
    if as_json:
        shown = {"model": model, "output": str(output), "method": options.method}
        say_json({"dry_run": True, **shown, "tasks": planned, "answered": done})
        return
    for name, kinds in planned.items():
        table(("kind", "questions"), kinds.items(), f"task {name}", right="questions")
    note("dry run: nothing was written")
    say(f"would write {output}" + (f", {done} questions are answered already" if done else ""))
