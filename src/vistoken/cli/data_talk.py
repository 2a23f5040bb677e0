"""`vistoken data talk`: conversations of a language model with itself, for keep-language."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vistoken.cli.console import DryRunOption, JsonOption, quieten, say, say_json
from vistoken.cli.progress import Progress


def talk(
    out: Annotated[Path, typer.Argument(help="File to make (JSON lines).")],
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Folder of a language model (nano's own)."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Conversations.")] = 320,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let a language model write requests and answer them: rows without a picture."""
    from vistoken.data.prose import check_new

    check_new(out)
    quieten()
    from vistoken.convert.nano_parts import ensure_nano_parts, nano_parts
    from vistoken.core.files import write_atomically
    from vistoken.data import talk as talking

    result = {"out": str(out), "rows": rows, "seed": seed, "written": not dry_run}
    if dry_run:
        folder = model or nano_parts().language_model
        result["model"] = str(folder)
        say_json(result) if as_json else say(f"would write {out}: {rows} rows by {folder}")
        return
    with Progress(quiet=as_json) as progress:
        folder = model or ensure_nano_parts(progress.line).language_model
        writer = talking.Writer.read(folder)
        steps = partial(progress.steps, "rows")
        written = list(talking.talk(writer, rows, seed, steps))
    write_atomically(out, "".join(f"{json.dumps(row)}\n" for row in written).encode())
    say_json({**result, "model": str(folder)}) if as_json else say(f"wrote {out}: {rows} rows")
