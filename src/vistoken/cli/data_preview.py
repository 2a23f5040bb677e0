"""`vistoken data preview`: a page with pictures, conversations and the label mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistoken.cli.console import DryRunOption, JsonOption, quieten, say, say_json
from vistoken.cli.data_check import (
    FormOption,
    ImageRootOption,
    MaskModelOption,
    TemplateOption,
    mask_encoder,
)
from vistoken.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from vistoken.data.preview import MaskView


def preview(
    file: Annotated[Path, typer.Argument(help="Data file: JSONL, JSON, Parquet.")],
    out: Annotated[Path, typer.Argument(help="HTML page to write.")],
    image_root: ImageRootOption = None,
    model: MaskModelOption = None,
    template: TemplateOption = None,
    form: FormOption = "auto",
    limit: Annotated[int, typer.Option(min=1, help="Pictures to show.")] = 50,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a page that shows the first pictures of a data file with what is asked about them.

    With a model, every token is coloured by its label; without, whole turns are.
    """
    if not file.exists():
        raise DataError(f"{file} does not exist; name a data file")
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name the page to write, such as {out}/preview.html")
    if template and model is None:
        raise UsageError("--template needs a tokenizer; name one with --model")
    if not dry_run:
        quieten()
        from vistoken.data.preview import preview_page

        masks = None if model is None else _masks(model, template)
        preview_page(file, out, limit, image_root, form, masks)
    if as_json:
        say_json({"file": str(file), "out": str(out), "written": not dry_run})
    else:
        say(f"would write {out}" if dry_run else f"wrote {out}")


def _masks(model: str, template: str | None) -> MaskView:
    from vistoken.data.preview import MaskView

    encode = mask_encoder(model, template)
    return MaskView(encode, encode.processor.tokenizer.decode)
