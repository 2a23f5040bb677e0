"""`vistoken inspect checkpoint`: what a directory of weights holds, read from its headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Annotated, Any

import typer

from vistoken.cli.console import JsonOption, say, say_json, table
from vistoken.core.errors import WeightsError

_HEADER_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000  # the format's own limit
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def checkpoint(
    directory: Annotated[Path, typer.Argument(help="Directory of weights.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a checkpoint is, what it refers to, and what is wrong with it (then exit code 4).

    Tensors are read from the files' headers, never loaded; pickled files are named, not opened.
    """
    if not directory.is_dir():
        raise WeightsError(f"checkpoint {directory} does not exist or is no directory")
    report = examine(directory)
    if as_json:
        say_json(report)
    else:
        _show(report)
    if report["problems"]:
        raise typer.Exit(WeightsError.exit_code)


def examine(directory: Path) -> dict[str, Any]:
    """Collect what a directory holds.

    Returns:
        Kind, tensors by file, references, adapter, and problems, ready for JSON.
    """
    problems: list[str] = []
    config = _read_object(directory / "config.json", problems)
    adapter_folder = directory / "adapter" if (directory / "adapter").is_dir() else directory
    adapter = _adapter(adapter_folder, problems)
    references = _references(directory, problems)
    tensors: list[dict[str, Any]] = []
    for path in sorted(directory.rglob("*.safetensors")):
        try:
            tensors += _tensors(path, path.relative_to(directory).as_posix())
        except WeightsError as error:
            problems.append(str(error))
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
    problems += _missing_shards(directory)
    if not tensors and not pickles:
        problems.append("there is no weight file; the checkpoint is incomplete")
    return {
        "directory": str(directory),
        "kind": _kind(directory, config, adapter is not None),
        "model_type": config.get("model_type"),
        "tensors": tensors,
        "parameters": sum(tensor["numbers"] for tensor in tensors),
        "bytes": sum(tensor["bytes"] for tensor in tensors),
        "pickled_files": pickles,
        "references": references,
        "adapter": adapter,
        "problems": problems,
    }


def _kind(directory: Path, config: dict[str, Any], has_adapter: bool) -> str:
    names = {path.name for path in directory.iterdir()}
    model_type = str(config.get("model_type", ""))
    if model_type == "vistoken":
        return "light" if "references.json" in names else "full"
    official = "mm_vision_tower" in config or "mm_hidden_size" in config
    if official or (model_type.startswith("llava_") and model_type != "llava_next"):
        if "non_lora_trainables.bin" in names or has_adapter:
            return "official LLaVA or LLaVA-SP release, LoRA"
        if "mm_projector.bin" in names:
            return "official LLaVA or LLaVA-SP release, projector only"
        return "official LLaVA or LLaVA-SP release, merged"
    if model_type in ("llava", "llava_next"):
        return f"Hugging Face {model_type}"
    if has_adapter:
        return "LoRA adapter"
    return f"other ({model_type})" if model_type else "unknown"


def _adapter(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    values = _read_object(path, problems)
    keys = ("r", "lora_alpha", "target_modules", "base_model_name_or_path")
    if not any(folder.glob("adapter_model.*")):
        problems.append(f"{path} stands without adapter_model.safetensors; the adapter is lost")
    return {key: values.get(key) for key in keys}


def _references(directory: Path, problems: list[str]) -> list[dict[str, Any]]:
    path = directory / "references.json"
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [{key: str(entry[key]) for key in ("part", "source", "digest")} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{path} cannot be read ({error}); save the checkpoint again")
        return []


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path} cannot be read ({error})")
        return {}
    return values if isinstance(values, dict) else {}


def _missing_shards(directory: Path) -> list[str]:
    problems: list[str] = []
    for index in sorted(directory.glob("*.index.json")):
        shards = _read_object(index, problems).get("weight_map", {})
        lost = sorted({name for name in shards.values() if not (directory / name).is_file()})
        problems += [f"{index.name} names {name}, which is not there" for name in lost]
    return problems


def _tensors(path: Path, name: str) -> list[dict[str, Any]]:
    """Name, type, shape and bytes of each tensor, from the header alone.

    Raises:
        WeightsError: The file is not safetensors, or shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        opening = file.read(_HEADER_LENGTH.size)
        length = _HEADER_LENGTH.unpack(opening)[0] if len(opening) == _HEADER_LENGTH.size else size
        if length > min(size, _LONGEST_HEADER):
            raise WeightsError(f"{path} is truncated or not safetensors; fetch it again")
        try:
            header = json.loads(file.read(length))
            rows = [
                {
                    "file": name,
                    "name": tensor,
                    "dtype": entry["dtype"],
                    "shape": entry["shape"],
                    "numbers": _product(entry["shape"]),
                    "bytes": entry["data_offsets"][1] - entry["data_offsets"][0],
                }
                for tensor, entry in header.items()
                if tensor != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{path} has a damaged header ({error}); fetch it again") from error
    expected = _HEADER_LENGTH.size + length + sum(row["bytes"] for row in rows)
    if size != expected:
        raise WeightsError(
            f"{path} has {size:,} bytes where its header says {expected:,}; fetch it again"
        )
    return rows


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _show(report: dict[str, Any]) -> None:
    say(f"{report['directory']}: {report['kind']}")
    table(
        ("tensor", "type", "shape", "bytes", "file"),
        [
            (row["name"], row["dtype"], "x".join(map(str, row["shape"])), row["bytes"], row["file"])
            for row in report["tensors"]
        ],
        f"{len(report['tensors'])} tensors, {report['parameters']:,} numbers, "
        f"{report['bytes']:,} bytes",
        right="bytes",
    )
    if report["references"]:
        table(
            ("part", "source", "sha256"),
            [(r["part"], r["source"], r["digest"][:12]) for r in report["references"]],
            "references",
        )
    if report["adapter"]:
        say(f"adapter: {report['adapter']}")
    if report["pickled_files"]:
        say(f"pickled, not opened here: {', '.join(report['pickled_files'])}")
    for problem in report["problems"]:
        say(f"problem: {problem}")
