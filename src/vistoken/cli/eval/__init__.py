"""`vistoken eval`: how many questions a model answers rightly, and how two results differ."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from vistoken.cli.eval.compare import compare
from vistoken.cli.eval.run import run


class _RunUnlessNamed(TyperGroup):
    """`eval MODEL TASK` means `eval run MODEL TASK`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunUnlessNamed,
    no_args_is_help=True,
    help="Ask a model the questions of task files (eval MODEL TASK.jsonl -o RESULTS), or compare "
    "two results (eval compare A B).",
)
app.command("run")(run)
app.command("compare")(compare)
