"""`vistoken data convert`: LLaVA's and ShareGPT's files to the schema and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistoken.cli.console import (
    DryRunOption,
    JsonOption,
    check_choice,
    counted,
    quieten,
    say,
    say_json,
)
from vistoken.core.errors import DataError

_POLICIES = ("error", "skip")


def convert(
    file: Annotated[Path, typer.Argument(help="Data file: JSONL, JSON, Parquet.")],
    out: Annotated[Path, typer.Argument(help="File to write: .jsonl, or .json for a list.")],
    source: Annotated[
        str, typer.Option("--from", help="schema, llava, sharegpt, or auto: as the first row.")
    ] = "auto",
    target: Annotated[str, typer.Option("--to", help="schema, llava or sharegpt.")] = "schema",
    on_bad_sample: Annotated[
        str, typer.Option(help="error stops at a bad sample, skip counts and reports it.")
    ] = "error",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a data file in another form; converting it back gives the file again."""
    check_choice("--on-bad-sample", on_bad_sample, _POLICIES)
    if out.exists() and out.resolve() == file.resolve():
        raise DataError(f"{out} is the file to convert; name another one to write")
    quieten()
    from vistoken.data.converting import convert_file
    from vistoken.data.forms import form_of, named_form
    from vistoken.data.reading import BadSamples, open_rows

    bad = BadSamples("skip" if on_bad_sample == "skip" else "error")
    if dry_run:
        rows = open_rows(file)
        written, given = len(rows), form_of(rows, source).name
        named_form(target)
    else:
        written, given = convert_file(file, out, source, target, bad)
    if as_json:
        say_json(
            {
                "file": str(file),
                "out": str(out),
                "from": given,
                "to": target,
                "written": not dry_run,
                "samples": written,
                "skipped": bad.skipped,
                "first_faults": bad.first,
                "warnings": bad.warned,
                "first_warnings": bad.first_warned,
            }
        )
        return
    for message in bad.first:
        say(f"skipped: {message}")
    if bad.skipped > len(bad.first):
        say(f"... and {bad.skipped - len(bad.first):,} more")
    for message in bad.first_warned:
        say(f"warning: {message}")
    if bad.warned > len(bad.first_warned):
        say(f"{counted(bad.warned, 'sample')} with warnings")
    verb = "would write" if dry_run else "wrote"
    say(f"{verb} {out}: {counted(written, 'sample')}, {given} -> {target}, {bad.skipped:,} skipped")
