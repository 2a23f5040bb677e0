"""Entry point of `vistoken` and of `python -m vistoken`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from vistoken import __version__
from vistoken.cli import (
    chat,
    data,
    doctor,
    inspect,
    listing,
    merge,
    prune,
    serve,
    study,
    train,
    viz,
)
from vistoken.cli.console import fail, show_traceback
from vistoken.cli.convert import app as convert_app
from vistoken.cli.eval import app as eval_app
from vistoken.cli.serve_vllm import ANY_OPTION
from vistoken.core.errors import MachineError, VistokenError

INTERRUPTED = 130
FAULT = 1
# what PyTorch says where it has no exception class of its own for a lack of memory
_MEMORY_COMPLAINTS = ("can't allocate memory", "not enough memory", "out of memory")
_REMEDIES = (
    "there is not enough memory for this; choose a smaller floating type (--dtype bfloat16), "
    "quantized weights (--quantization int8 or nf4), fewer tokens (--max-new-tokens, fewer or "
    "smaller pictures, a smaller batch), or a smaller model"
)

app = typer.Typer(
    name="vistoken",
    help="LLaVA-style vision-language models as one pipeline of parts that plug in.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a fault of ours, 2 usage, 3 data, 4 weights, 5 environment.",
)
app.command("chat")(chat.chat)
app.command("train")(train.train)
app.command("merge")(merge.merge)
app.command("prune")(prune.prune)
app.command("study")(study.study)
app.command("serve", context_settings=ANY_OPTION)(serve.serve)
app.add_typer(eval_app, name="eval")
app.add_typer(convert_app, name="convert")
app.add_typer(inspect.app, name="inspect")
app.add_typer(viz.app, name="viz")
app.add_typer(data.app, name="data")
app.command("list")(listing.show)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vistoken {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from (before the verb).")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take the options that stand before the verb."""
    show_traceback(debug)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code.

    Args:
        arguments: Words after the program's name; those of the process when None.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line.

    Args:
        arguments: Words after the program's name.

    Returns:
        The exit code; whatever went wrong was said in one line on the error stream.
    """
    show_traceback(False)
    try:
        code = app(arguments, prog_name="vistoken", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except VistokenError as error:
        return fail(error, str(error), error.exit_code)
    except typer.TyperException as error:
        if not error.format_message():  # a group without a verb: its help was printed
            return error.exit_code
        return fail(error, _explain(error), error.exit_code)
    except Exception as error:
        if _is_out_of_memory(error):
            return fail(error, _REMEDIES, MachineError.exit_code)
        message = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return fail(
            error,
            f"this is a bug in vistoken ({message}); please report it with the output of "
            f"'vistoken --debug {arguments[0] if arguments else ''} ...'",
            FAULT,
        )
    return code if isinstance(code, int) else 0


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the machine or on a device; torch is not imported to know it."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(c in str(error) for c in _MEMORY_COMPLAINTS)


def _explain(error: typer.TyperException) -> str:
    """A usage error in one line, with the command that explains more."""
    text = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text} (see '{context.command_path} --help')"


def _reader_left() -> int:
    """Whoever read our output closed it (`| head`): nothing more can be written, nor must be."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives until exit
    return 0
