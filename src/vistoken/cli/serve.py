"""`vistoken serve`: answers over HTTP."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import (
    DeviceOption,
    DryRunOption,
    DtypeOption,
    Quantization,
    note,
    quieten,
    say,
)
from vistoken.cli.serve_vllm import Engine, refuse_extra, serve_with_vllm
from vistoken.core.errors import DataError, MachineError, UsageError

if TYPE_CHECKING:
    from vistoken.serve.engine import EngineLimits
    from vistoken.serve.settings import ServeSettings

KEYS_VARIABLE = "VISTOKEN_API_KEYS"
_NEEDS = ("fastapi", "uvicorn", "prometheus_client")
_MIB = 2**20


def serve(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Recipe, checkpoint directory or hub id; NAME=... renames it."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: Annotated[
        Quantization | None, typer.Option(help="Weights of the language model: int8 or nf4.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"File with one API key per line; or set {KEYS_VARIABLE}."),
    ] = None,
    image_urls: Annotated[
        bool, typer.Option("--image-urls", help="Fetch pictures from public http(s) addresses.")
    ] = False,
    max_rows: Annotated[int, typer.Option(min=1, help="Answers written at a time.")] = 16,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 64,
    max_images: Annotated[int, typer.Option(min=0, help="Pictures in one request.")] = 8,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Pixels of all pictures of a request.")
    ] = 50_000_000,
    max_body: Annotated[int, typer.Option(min=1, help="Longest request body in MiB.")] = 32,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt and answer in tokens.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer where a request names none.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="Temperature where a request names none.")
    ] = 0.0,
    kv_memory: Annotated[
        int, typer.Option(min=1, help="Memory for keys and values in MiB.")
    ] = 2048,
    image_cache: Annotated[
        int, typer.Option(min=0, help="Memory for visual tokens of pictures seen, in MiB.")
    ] = 256,
    prefill_chunk: Annotated[
        int, typer.Option(min=1, help="Prompt tokens read between two steps of the others.")
    ] = 512,
    answer_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to answer a request.")
    ] = 600.0,
    shutdown_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to finish answers after SIGTERM.")
    ] = 60.0,
    engine: Annotated[
        Engine, typer.Option(help="vllm starts vLLM's server; further options are handed to it.")
    ] = Engine.embedded,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="A web page to talk to the models, at /.")
    ] = True,
    dry_run: DryRunOption = False,
) -> None:
    """Serve models with an OpenAI-compatible interface, in one process.

    POST /v1/chat/completions, GET /v1/models, /health and /metrics; a web page at /. SIGTERM and
    Ctrl-C finish running answers first.
    """
    if engine is Engine.vllm:
        serve_with_vllm(
            context,
            _names(model or ["nano"]),
            (host, port),
            dtype,
            _read_keys(api_key_file),
            image_urls,
            dry_run,
        )
        return
    refuse_extra(context)
    _check_extra()
    quieten()
    from vistoken.cli.sources import check_model
    from vistoken.serve.engine import EngineLimits
    from vistoken.serve.settings import ServeSettings

    names = _names(model or ["nano"])
    settings = ServeSettings(
        api_keys=_read_keys(api_key_file),
        max_body_bytes=max_body * _MIB,
        max_images=max_images,
        max_pixels=max_pixels,
        max_open_requests=max_rows + max_queue + 32,
        default_temperature=temperature,
        image_urls=image_urls,
        answer_timeout_s=answer_timeout,
        shutdown_timeout_s=shutdown_timeout,
    )
    limits = EngineLimits(
        max_rows=max_rows,
        max_queue=max_queue,
        kv_bytes=kv_memory * _MIB,
        image_cache_bytes=image_cache * _MIB,
        prefill_chunk=prefill_chunk,
        max_context=max_context,
        default_max_tokens=max_new_tokens,
    )
    for source in names.values():
        check_model(source)
    if host not in ("127.0.0.1", "localhost", "::1") and not settings.api_keys:
        note(f"warning: {host} may be reached by others and no API key is set")
    if dry_run:
        say(f"would serve {', '.join(names)} on http://{host}:{port}")
        return
    placing = (device, dtype, quantization)
    _serve_embedded(names, settings, limits, (host, port), placing, page=page)


def _serve_embedded(
    names: dict[str, str],
    settings: ServeSettings,
    limits: EngineLimits,
    address: tuple[str, int],
    placing: tuple[str, str, Quantization | None],
    *,
    page: bool,
) -> None:
    from vistoken.cli.sources import load_model
    from vistoken.serve.app import create_app
    from vistoken.serve.engine import EmbeddedEngine
    from vistoken.serve.page import page_for
    from vistoken.serve.server import bind, run_server

    listening = bind(*address)
    engines: dict[str, Any] = {}
    extend = page_for(engines, settings) if page else None
    for name, source in names.items():
        engines[name] = EmbeddedEngine(name, *load_model(source, *placing), limits)
    app = create_app(engines, settings, extend=extend)
    where = f"http://{address[0]}:{listening.getsockname()[1]}"
    ready = partial(note, f"{', '.join(names)} at {where} (Ctrl-C stops)")
    run_server(app, settings, listening, ready)


def _names(models: list[str]) -> dict[str, str]:
    """What clients call each model -> where it is."""
    names: dict[str, str] = {}
    for value in models:
        name, equals, source = value.partition("=")
        if not equals:
            name, source = (Path(value).name if Path(value).is_dir() else value), value
        if not name or not source:
            raise UsageError(f"--model {value!r}: write NAME=PATH, a path or a name")
        if name in names:
            raise UsageError(f"two models are called {name!r}; rename one: --model NAME=PATH")
        names[name] = source
    return names


def _read_keys(path: Path | None) -> Any:
    """API keys of the file or the environment; a word on the command line could be seen by all."""
    if path is None:
        words = os.environ.get(KEYS_VARIABLE, "").split()
        return tuple(words)
    try:
        keys = tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the key file {path} cannot be read ({error}); check the path") from error
    if not keys:
        raise DataError(f"the key file {path} holds no key; write one per line")
    return keys


def _check_extra() -> None:
    for package in _NEEDS:
        if find_spec(package) is None:
            raise MachineError(
                f"serving needs {package}, which is not installed; run "
                "pip install 'vistoken[serve]'"
            )
