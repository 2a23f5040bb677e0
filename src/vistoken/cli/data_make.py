"""`vistoken data make`: composed scenes, a plain set of any size or a named one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistoken.cli.console import DryRunOption, JsonOption, check_choice, quieten, say, say_json
from vistoken.cli.progress import Progress
from vistoken.core.errors import DataError, UsageError

_SOURCES = ("icons", "shapes")
_PLAIN_SET = "plain"
_SETS = (_PLAIN_SET, "vistoken-scenes-v1")
_PLAIN_SPLITS = {"train": 1000, "val": 100, "style": 0}


def make(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    set_name: Annotated[
        str, typer.Option("--set", help="plain, or vistoken-scenes-v1 with all its splits.")
    ] = _PLAIN_SET,
    source: Annotated[
        str, typer.Option(help="icons (fetched, drawn in several styles) or shapes (offline).")
    ] = "icons",
    scenes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPLIT=N", help="Scenes of a split of a named set; only these are made."
        ),
    ] = None,
    train: Annotated[
        int | None, typer.Option(min=0, help="Plain set: training scenes (1000).")
    ] = None,
    val: Annotated[
        int | None, typer.Option(min=0, help="Plain set: scenes of held-out compositions (100).")
    ] = None,
    style: Annotated[
        int | None, typer.Option(min=0, help="Plain set: the same in a held-out style (0).")
    ] = None,
    seed: Annotated[int, typer.Option(help="A scene depends on seed, split and number.")] = 0,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 336,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compose labelled scenes: pictures, questions with known answers, card and credits."""
    check_choice("--set", set_name, _SETS)
    check_choice("--source", source, _SOURCES)
    plain = {"train": train, "val": val, "style": style}
    if set_name == _PLAIN_SET:
        wanted = _plain_scenes(plain, scenes)
    else:
        wanted = _named_scenes(set_name, source, plain, scenes)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; name a new one or empty it")
    result = {
        "out": str(out),
        "set": set_name,
        "source": source,
        "scenes": wanted,
        "seed": seed,
        "size": size,
    }
    if dry_run:
        say_json({**result, "written": False}) if as_json else say(f"would write {out}: {wanted}")
        return
    quieten()
    from vistoken.data.scenes import make_scenes
    from vistoken.data.scenes.v1 import make_set

    write = make_scenes if set_name == _PLAIN_SET else make_set
    with Progress(quiet=as_json) as progress:
        write(
            out,
            scenes=wanted,
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


def _plain_scenes(plain: dict[str, int | None], scenes: list[str] | None) -> dict[str, int]:
    if scenes:
        raise UsageError("--scenes belongs to a named set; use --train, --val, --style, or --set")
    numbers = {
        split: _PLAIN_SPLITS[split] if number is None else number for split, number in plain.items()
    }
    wanted = {split: number for split, number in numbers.items() if number}
    if not wanted:
        raise UsageError("all splits are empty; give --train, --val or --style a number")
    return wanted


def _named_scenes(
    set_name: str, source: str, plain: dict[str, int | None], scenes: list[str] | None
) -> dict[str, int]:
    given = [f"--{split}" for split, number in plain.items() if number is not None]
    if given:
        raise UsageError(f"{given[0]} belongs to the plain set; with --set {set_name} use --scenes")
    from vistoken.data.scenes.v1 import PARTS, full_size

    if not scenes:
        return full_size(source)
    wanted: dict[str, int] = {}
    for entry in scenes:
        split, _, number = entry.partition("=")
        check_choice("--scenes", split, tuple(PARTS))
        if not number.isdecimal():
            raise UsageError(f"--scenes {entry} names no number; write it like {split}=100")
        wanted[split] = int(number)
    return wanted
