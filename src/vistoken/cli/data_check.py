"""`vistoken data check`: every fault of a data file, before a run finds the first one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import JsonOption, counted, quieten, say, say_json, table
from vistoken.cli.progress import Progress
from vistoken.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from vistoken.data.check import CheckReport, ProcessorEncode

FormOption = Annotated[
    str, typer.Option("--form", help="schema, llava, sharegpt, or auto: as the first row.")
]
ImageRootOption = Annotated[
    Path | None,
    typer.Option("--image-root", help="Folder of the image paths; default: the file's own."),
]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="Another chat template than the model's own.")
]
MaskModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Measure with this model's tokenizer; no weights are loaded."
    ),
]


def check(
    file: Annotated[Path, typer.Argument(help="Data file: JSONL, JSON, Parquet.")],
    image_root: ImageRootOption = None,
    model: MaskModelOption = None,
    template: TemplateOption = None,
    form: FormOption = "auto",
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens; default: the model's context.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Faults to print; --json has them all.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Look at every sample: pictures, roles, placeholders, lengths, supervised tokens.

    The exit code is 3 if there are faults.
    """
    if model is None and (template or max_length):
        raise UsageError("--template and --max-length need a tokenizer; name one with --model")
    quieten()
    from vistoken.data.check import check_file

    encode = None if model is None else mask_encoder(model, template)
    if model is not None and max_length is None:
        max_length = context_length(model)
    with Progress(quiet=as_json) as progress:
        report = check_file(
            file,
            image_root,
            form,
            encode,
            max_length,
            lambda done, total: progress.steps("samples", done, total),
        )
    if as_json:
        say_json({"file": str(file), **report.to_dict()})
    else:
        _show(report, show)
    if report.bad_samples:
        raise DataError(
            f"{file}: {report.bad_samples} of {counted(report.samples, 'sample')} with faults; "
            + (
                "give the right --image-root"
                if report.wrong_root
                else "mend them or leave them out"
            )
        )


def mask_encoder(model: str, template: str | None) -> ProcessorEncode:
    """Tokens and labels as a model's processor makes them."""
    from vistoken.cli.sources import check_model, read_processor
    from vistoken.data.check import ProcessorEncode
    from vistoken.models.templates import load_template

    check_model(model)
    text = load_template(template) if template else None
    return ProcessorEncode(read_processor(model), text)


def context_length(model: str) -> int | None:
    """Positions of a model's language model, as far as its configuration tells."""
    from vistoken.cli.sources import read_config

    values: dict[str, Any] = read_config(model).text_config.to_dict()
    length = values.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _show(report: CheckReport, show: int) -> None:
    faults, count = report.faults, sum(report.kinds.values())
    if report.wrong_root:
        say(f"wrong image root? {report.wrong_root}")
        faults = [fault for fault in faults if fault.kind != "image-missing"]
        count -= report.kinds["image-missing"]
    for fault in faults[:show]:
        say(f"{fault.kind}: {fault.message}")
    more = count - min(show, len(faults))
    if more > 0:
        say(f"... and {more:,} more faults (--show, --json)")
    if report.kinds:
        table(("fault", "times"), report.kinds.most_common(), right="times")
    rows = [(f"{low:,}-{high:,}", count) for low, high, count in report.histogram()]
    if rows:
        table((report.unit, "samples"), rows, title=f"lengths in {report.unit}", right="samples")
    share = report.supervised_share
    if share is not None:
        say(f"{report.supervised:,} of {report.tokens:,} tokens are supervised ({share:.1%})")
    for warning in report.warned[:show]:
        say(f"warning: {warning}")
    if report.warnings > show:
        say(f"{counted(report.warnings, 'sample')} with warnings (--show, --json)")
    for repeat in report.repeats[:show]:
        say(f"repeated id: {repeat.where}: sample {repeat.id!r}, first at {repeat.first}")
    if report.repeated_ids:
        say(f"{counted(report.repeated_ids, 'sample')} with an id that another one has as well")
    say(
        f"{counted(report.samples, 'sample')} ({report.form}), "
        f"{report.with_images:,} with pictures, {counted(report.images, 'picture file')}, "
        f"{counted(report.bad_samples, 'sample')} with faults"
    )
