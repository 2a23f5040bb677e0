"""What every verb shares: printing, errors, common options and a quiet transformers."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import typer

from vistoken.core.errors import UsageError

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="Recipe name, checkpoint directory or hub id."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and say what would be written.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Quantization = Literal["int8", "nf4"]

_TALKATIVE = ("transformers", "torchao", "torch.utils._pytree", "huggingface_hub")

_state = {"traceback": False}


def show_traceback(wanted: bool) -> None:
    """Choose whether errors also show where they came from."""
    _state["traceback"] = wanted


def fail(error: BaseException, message: str, code: int) -> int:
    """Report an error in one line on the error stream.

    Returns:
        `code`, the exit code.
    """
    if _state["traceback"]:
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def say(text: str = "") -> None:
    """Print a line of a verb's result."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print a line about what is going on, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def say_json(value: Any) -> None:
    """Print a result as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str = "",
    right: str = "",
    width: int = 160,
    whole: str = "",
) -> None:
    """Print rows under a heading.

    Args:
        columns: Headings.
        rows: Cells; numbers are grouped by thousands.
        title: Line above the table.
        right: Headings of the columns that are aligned to the right, separated by commas.
        width: Columns of redirected output.
        whole: Headings of the columns whose cells are never broken, separated by commas.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title:
        say(title)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    to_right = {name.strip() for name in right.split(",")}
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in to_right else "left"
        unbroken = column in whole.split(",")
        grid.add_column(column, justify=justify, overflow="fold", no_wrap=unbroken)
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    # Redirected output is read by programs and searched by people: nothing is cut to 80 columns.
    Console(width=None if sys.stdout.isatty() else width).print(grid)


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 sample``, ``1,200 samples``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def grouped(number: float) -> str:
    """A number for people: thousands grouped, large ones with a unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,}"


def quieten() -> None:
    """Keep libraries from talking between our own lines; call before importing transformers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if _state["traceback"]:
        return
    warnings.filterwarnings("ignore")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def check_choice(option: str, value: str, known: Sequence[str]) -> str:
    """Return `value` if it is known; UsageError with near names otherwise."""
    from vistoken.core.errors import did_you_mean

    if value not in known:
        raise UsageError(f"{option} {value!r} is unknown: {did_you_mean(value, known)}")
    return value


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)
