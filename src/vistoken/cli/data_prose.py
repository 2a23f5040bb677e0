"""`vistoken data prose`: rows without a picture, for the objective keep-language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistoken.cli.console import DryRunOption, JsonOption, say, say_json


def prose(
    out: Annotated[Path, typer.Argument(help="File to make (JSON lines).")],
    times: Annotated[
        int, typer.Option(min=1, help="How often each passage comes, behind other requests.")
    ] = 1,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write passages of Python's own manual as rows without a picture; needs no network."""
    from vistoken.data.prose import check_new, prose_rows, source, write_prose

    check_new(out)
    number = len(prose_rows(times)) if dry_run else write_prose(out, times)
    if as_json:
        say_json({"out": str(out), "rows": number, "source": source(), "written": not dry_run})
    else:
        say(f"{'would write' if dry_run else 'wrote'} {out}: {number} rows from the {source()}")
