"""`vistoken convert`: foreign checkpoints become ours, and ours become theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistoken.cli.console import DryRunOption, JsonOption, quieten, say, say_json, table
from vistoken.cli.sources import read_json
from vistoken.core.errors import WeightsError

if TYPE_CHECKING:
    from vistoken.convert.report import ConversionReport

app = typer.Typer(help="Convert foreign checkpoints, and ours to theirs.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="Directory of the foreign checkpoint.")]
Ours = Annotated[Path, typer.Argument(help="Directory of a checkpoint of vistoken's.")]
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


@app.command("mini-monkey")
def mini_monkey(
    release: Source,
    out: Out,
    variant: Annotated[
        str | None,
        typer.Option(help="mini-monkey (two tilings, the default) or internvl2 (one)."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a Mini-Monkey or InternVL2 release on InternLM2."""
    quieten()
    from vistoken.convert.whole_release import convert_whole_release

    _show(
        convert_whole_release("mini-monkey", release, out, variant=variant, dry_run=dry_run),
        as_json,
    )


@app.command("to-llava-hf")
def to_llava_hf(
    directory: Ours,
    out: Out,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; the checkpoint's own otherwise."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export to plain Hugging Face Llava, for a model whose connector is 'mlp' alone."""
    _check_ours(directory)
    quieten()
    import torch

    from vistoken.convert.export_llava_hf import export_llava_hf
    from vistoken.models.device import choose_dtype

    chosen = None if dtype is None else choose_dtype(dtype, torch.device("cpu"))
    _show(export_llava_hf(directory, out, dtype=chosen, dry_run=dry_run), as_json)


@app.command("to-llava-sp")
def to_llava_sp(
    directory: Ours,
    out: Out,
    base: Annotated[
        str | None, typer.Option(help="What to call the language model; its reference otherwise.")
    ] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="What to call the vision tower; its reference otherwise.")
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a light checkpoint to the official LLaVA and LLaVA-SP file layout."""
    _check_ours(directory)
    quieten()
    from vistoken.convert.export_llava_sp import export_llava_sp

    _show(
        export_llava_sp(directory, out, base=base, vision_tower=vision_tower, dry_run=dry_run),
        as_json,
    )


def _check_ours(directory: Path) -> None:
    """Refuse what is no checkpoint of ours, before anything heavy is imported."""
    path = directory / "config.json"
    if not path.is_file():
        raise WeightsError(f"{directory} has no config.json; name the directory of a checkpoint")
    kind = read_json(path).get("model_type")
    if kind != "vistoken":
        raise WeightsError(f"{directory} is a {kind} checkpoint, not one of vistoken's")


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
