"""`vistoken inspect`: look before you run."""

from __future__ import annotations

import typer

from vistoken.cli.inspect.checkpoint import checkpoint
from vistoken.cli.inspect.memory import memory
from vistoken.cli.inspect.model import model
from vistoken.cli.inspect.prompt import prompt
from vistoken.cli.inspect.tokens import tokens

app = typer.Typer(no_args_is_help=True, help="Look at a model, a prompt, tokens or a checkpoint.")
app.command("model")(model)
app.command("memory")(memory)
app.command("prompt")(prompt)
app.command("tokens")(tokens)
app.command("checkpoint")(checkpoint)
