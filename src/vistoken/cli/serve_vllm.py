"""`vistoken serve --engine vllm`: our words on the command line as vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from shlex import join

import typer

from vistoken.cli.console import note, say
from vistoken.core.errors import UsageError

# Options of `serve` that mean the same with vLLM; the others are the embedded engine's own.
_SHARED = ("model", "host", "port", "dtype", "api_key_file", "image_urls", "dry_run", "engine")


ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Lets options through that are not ours; the embedded engine refuses them by name."""


class Engine(StrEnum):
    """What computes the answers."""

    embedded = "embedded"
    vllm = "vllm"


def refuse_extra(context: typer.Context) -> None:
    """Refuse words that only vLLM would understand.

    Raises:
        UsageError: The first of them.
    """
    if context.args:
        word = context.args[0]
        raise UsageError(
            f"no such option: {word} (see 'vistoken serve --help'); vLLM's need --engine vllm"
            if word.startswith("-")
            else f"unexpected argument {word!r}; name the model with --model"
        )


def serve_with_vllm(
    context: typer.Context,
    names: dict[str, str],
    address: tuple[str, int],
    dtype: str,
    keys: Sequence[str],
    image_urls: bool,
    dry_run: bool,
) -> None:
    """Replace this process by vLLM's server, or say how it would be started.

    Args:
        context: Knows which options were given, and holds those that are not ours.
        names: What clients call each model -> where it is.
        address: Host and port.
        dtype: As in :func:`vistoken.api.load`.
        keys: API keys.
        image_urls: Whether http(s) pictures are fetched.
        dry_run: Start nothing.

    Raises:
        UsageError: An option of the embedded engine, several models, or a part that vLLM cannot
            run.
    """
    from vistoken.api import load
    from vistoken.serve.vllm.launch import VllmSettings, check_vllm, serve_vllm

    refuse_embedded_options(context)
    if len(names) > 1:
        raise UsageError(f"vLLM serves one model in a process, not {len(names)}; start one each")
    ((name, source),) = names.items()
    settings = VllmSettings(source, *address, dtype, name, tuple(keys), image_urls)
    check_vllm(settings, context.args)
    if dry_run:
        further = f" with {join(context.args)}" if context.args else ""
        say(f"would serve {name} by vLLM on http://{address[0]}:{address[1]}{further}")
        return
    note(f"handing {source} over to vLLM")
    serve_vllm(settings, context.args, load)


def refuse_embedded_options(context: typer.Context) -> None:
    """Refuse options that vLLM would not follow.

    Raises:
        UsageError: The first of them that was given.
    """
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _SHARED and source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"--{name.replace('_', '-')} is the embedded engine's; give vLLM's own option "
                "instead (see 'vllm serve --help')"
            )
