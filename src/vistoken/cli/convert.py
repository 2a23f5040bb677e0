"""`vistoken convert`: foreign checkpoints become ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistoken.cli.console import DryRunOption, JsonOption, quieten, say, say_json, table

if TYPE_CHECKING:
    from vistoken.convert.report import ConversionReport

app = typer.Typer(help="Convert foreign checkpoints.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="Directory of the foreign checkpoint.")]
Out = Annotated[Path, typer.Argument(help="Directory to make; must not exist, or be empty.")]


@app.command("llava-sp")
def llava_sp(
    release: Source,
    out: Out,
    base: Annotated[
        str | None,
        typer.Option(help="Language model it builds on: directory or hub id."),
    ] = None,
    vision_tower: Annotated[
        str | None,
        typer.Option(help="Vision tower it builds on: directory or hub id."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write everything into OUT, LoRA folded in.")
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert an official LLaVA-SP or LLaVA-1.5 release.

    The variant is told by the tensors' names. Without --merge the result refers to the language
    model and the vision tower where they are.
    """
    quieten()
    from vistoken.convert.llava import convert_llava_sp

    _show(
        convert_llava_sp(
            release, out, base=base, vision_tower=vision_tower, merge=merge, dry_run=dry_run
        ),
        as_json,
    )


@app.command("llava-hf")
def llava_hf(
    directory: Source, out: Out, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Convert a Hugging Face Llava checkpoint."""
    quieten()
    from vistoken.convert.llava_hf import convert_llava_hf

    _show(convert_llava_hf(directory, out, dry_run=dry_run), as_json)


def _show(report: ConversionReport, as_json: bool) -> None:
    if as_json:
        say_json(report.to_json())
        return
    if not report.written:
        rows = [
            (row.file, row.key, "x".join(map(str, row.shape)), row.use, row.target or row.note)
            for row in report.rows
        ]
        table(("file", "tensor", "shape", "use", "becomes"), rows)
        for name in ("base", "vision_tower", "views", "layout", "template"):
            say(f"{name.replace('_', ' ')}: {getattr(report, name) or 'inside'}")
    say(report.summary())
