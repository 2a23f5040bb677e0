"""`vistoken merge`: a light checkpoint becomes a full one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistoken.cli.console import DryRunOption, JsonOption, note, quieten, say, say_json
from vistoken.core.errors import UsageError, WeightsError


def merge(
    directory: Annotated[Path, typer.Argument(help="Light checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fold LoRA in and put the referenced weights beside ours: one plain Hugging Face directory."""
    if not directory.is_dir():
        raise WeightsError(f"checkpoint {directory} does not exist or is no directory")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists and is not empty; choose another output directory")
    quieten()
    import torch

    from vistoken.cli.sources import read_processor, where_instead
    from vistoken.models import VistokenForConditionalGeneration
    from vistoken.models.checkpoint import ADAPTER, is_light, merge_adapter, save_full
    from vistoken.models.device import choose_dtype
    from vistoken.models.references import read_references

    if not is_light(directory):
        raise UsageError(
            f"{directory} is not a light checkpoint (it has no references.json); "
            f"{where_instead(directory)}"
        )
    chosen = choose_dtype(dtype, torch.device("cpu"))
    references = read_references(directory)
    processor = read_processor(str(directory))
    parts = [{"part": r.part, "source": r.source} for r in references]
    result = {
        "directory": str(directory),
        "out": str(out),
        "dtype": str(chosen).removeprefix("torch."),
        "adapter": (directory / ADAPTER).is_dir(),
        "references": parts,
        "written": not dry_run,
    }
    if not dry_run:
        if not as_json:
            note(f"loading {directory} and what it refers to")
        model = VistokenForConditionalGeneration.from_pretrained(directory, dtype=chosen)
        merge_adapter(model)
        save_full(model, processor, out)
    if as_json:
        say_json(result)
        return
    for reference in references:
        say(f"{reference.part}: {reference.source}")
    say(f"LoRA: {'folded in' if result['adapter'] else 'none'}")
    say(f"would write {out}" if dry_run else f"wrote {out}")
