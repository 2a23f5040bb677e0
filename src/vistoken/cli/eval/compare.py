"""`vistoken eval compare A B`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistoken.cli.console import JsonOption, quieten, say, say_json


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of results.")],
    second: Annotated[Path, typer.Argument(help="Folder of results.")],
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="Setting that may differ (dtype, say); may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two results of the same questions: second minus first, pair by pair.

    Refused where the results were made with unlike settings. The interval draws whole pictures;
    p is McNemar's exact test on the questions that one of both alone answered rightly.
    """
    quieten()
    from vistoken.eval.compare import compare as compare_results
    from vistoken.eval.compare import comparison_rows
    from vistoken.eval.summary import text_table

    tables = compare_results(first, second, allow or [])
    if as_json:
        say_json({"first": str(first), "second": str(second), "tasks": tables})
        return
    for name, rows in tables.items():
        say(f"{name}: second minus first in points, 95 % interval\n")
        say(text_table(*comparison_rows(rows)))
