"""What `vistoken doctor` looks at; each check gives findings and never raises."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_PYTHONS = ((3, 11), (3, 13))
_GIB = 2**30
_TOO_LITTLE_DISK = 2 * _GIB
_TOO_LITTLE_MEMORY = 2 * _GIB
# a starved machine is slow, not broken
_IMPORT_TIMEOUT_S = 600
# libraries with compiled operators that must have been built for the torch beside them
_TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_NEEDED = ("torch", "transformers", "accelerate", "peft", "safetensors", "pillow", "numpy")
_EXTRAS = {
    "nano": ("gguf", "onnx"),
    "train": ("datasets",),
    "quant": ("torchao", "bitsandbytes"),
    "viz": ("matplotlib",),
    "scenes": ("resvg_py",),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: What.
        state: ``ok``, ``warning`` (something optional is missing) or ``broken``.
        found: What was found.
        fix: What to do about it.
    """

    name: str
    state: Literal["ok", "warning", "broken"]
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything."""
    findings = [python(), *libraries(), *companions()]
    if all(finding.state != "broken" for finding in findings):
        findings.append(imports())
    # the rest imports what may have turned out to be broken
    if all(finding.state != "broken" for finding in findings):
        findings += [*device(), cache(), *nano()]
    return [*findings, memory(), *extras()]


def python() -> Finding:
    """The interpreter's version."""
    low, high = _PYTHONS
    found = platform.python_version()
    if low <= sys.version_info[:2] <= high:
        return Finding("python", "ok", found)
    fix = f"use Python {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    return Finding("python", "broken", found, fix)


def libraries() -> Iterator[Finding]:
    """The libraries that nothing works without."""
    for name in _NEEDED:
        version = installed(name)
        if version is None:
            yield Finding(name, "broken", "not installed", f"{_pip()} install vistoken")
        else:
            yield Finding(name, "ok", version)


def companions() -> Iterator[Finding]:
    """Libraries that break transformers when they do not fit the installed torch."""
    for name in _TORCH_COMPANIONS:
        version = installed(name)
        if version is None:
            continue
        complaint = import_complaint(name)
        if complaint is None:
            yield Finding(
                name, "ok", f"{version}, fits torch {installed('torch')}; not needed here"
            )
        else:
            yield Finding(
                name,
                "broken",
                f"{version} does not fit torch {installed('torch')}: {complaint}",
                f"{_pip()} uninstall -y {name}",
            )


def imports() -> Finding:
    """Whether torch and transformers can be imported together."""
    complaint = import_complaint("transformers.models.llama.modeling_llama")
    if complaint is None:
        return Finding("import", "ok", "torch and transformers import")
    fix = f"{_pip()} install --force-reinstall torch transformers"
    return Finding("import", "broken", complaint, fix)


def device() -> Iterator[Finding]:
    """The device and floating type that `auto` chooses."""
    import torch

    from vistoken.models.device import choose_device, choose_dtype

    chosen = choose_device()
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else platform.machine()
    threads = f", {torch.get_num_threads()} threads" if chosen.type == "cpu" else ""
    yield Finding("device", "ok", f"{chosen} ({name}{threads})")
    yield Finding("dtype", "ok", str(choose_dtype("auto", chosen)).removeprefix("torch."))


def cache() -> Finding:
    """Whether the cache can be written and has room."""
    folder = _cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {free / _GIB:.1f} GiB free"
    fix = "set VISTOKEN_HOME to a folder that is writable and has room"
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Finding("cache", "broken", f"{folder} cannot be written", fix)
    if free < _TOO_LITTLE_DISK:
        return Finding("cache", "warning", found, fix)
    return Finding("cache", "ok", found)


def nano() -> Iterator[Finding]:
    """Whether the embedded model's parts are here."""
    folder = _cache_folder() / "nano"
    parts = sorted(p.parent.name for p in folder.glob("*/vistoken_part.json"))
    if len(parts) == 3:
        yield Finding("nano", "ok", f"parts ready: {', '.join(parts)}")
    else:
        found = f"{len(parts)} of 3 parts fetched"
        yield Finding("nano", "warning", found, "vistoken data fetch nano")


def memory() -> Finding:
    """Memory of the machine."""
    if sys.platform == "win32":
        return Finding("memory", "ok", "not measured on Windows")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{total / _GIB:.1f} GiB"
    if total >= _TOO_LITTLE_MEMORY:
        return Finding("memory", "ok", found)
    return Finding("memory", "warning", found, "nano needs 2 GiB; close other programs")


def extras() -> Iterator[Finding]:
    """Optional packages, by extra."""
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            fix = f"{_pip()} install 'vistoken[{extra}]'"
            yield Finding(f"extra {extra}", "warning", f"without {', '.join(missing)}", fix)
        else:
            yield Finding(f"extra {extra}", "ok", ", ".join(modules))


def installed(name: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_complaint(module: str) -> str | None:
    """Import a module in a process of its own; the last line of what goes wrong, or None."""
    command = [sys.executable, "-c", f"import torch, {module}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_IMPORT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"importing {module} takes longer than {_IMPORT_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"importing {module} ends with status {done.returncode}"


def _cache_folder() -> Path:
    from vistoken.models.cache_dir import cache_dir

    return cache_dir()


def _pip() -> str:
    return f"{Path(sys.executable).name} -m pip"
