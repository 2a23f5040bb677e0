"""From a model's name to a checkpoint directory of ours, converting foreign ones once."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from vistoken.convert.llava import convert_llava_sp
from vistoken.convert.llava_hf import convert_llava_hf, is_llava_hf
from vistoken.convert.release import is_official_release, read_json
from vistoken.convert.sources import fetch, looks_like_hub_id
from vistoken.core.errors import UsageError, VistokenError, WeightsError
from vistoken.models.cache_dir import cache_dir

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when a conversion changes, so that copies made by an older version are made again."""


def resolve_model(name_or_path: str | Path) -> Path:
    """Find a model's directory; recipe names are resolved above this.

    Args:
        name_or_path: A checkpoint of this package, an official LLaVA or LLaVA-SP release, or a
            Hugging Face Llava checkpoint: a directory or a hub id.

    Returns:
        A checkpoint of this package. Foreign ones are converted once, into the cache.

    Raises:
        WeightsError: There is no such directory, or it holds nothing that is known.
        MachineError: A hub id that is not cached, and the hub cannot be reached.
    """
    path = Path(name_or_path).expanduser()
    if not path.exists() and looks_like_hub_id(str(name_or_path)):
        path = fetch(str(name_or_path), "the model", "name a local directory")
    if not path.is_dir():
        raise WeightsError(
            f"no model {str(name_or_path)!r}: it is no directory, no recipe and no hub id of the "
            "form owner/name"
        )
    if not (path / "config.json").is_file():
        raise WeightsError(f"{path} has no config.json; it is no checkpoint, or not all of it")
    if read_json(path / "config.json").get("model_type") == "vistoken":
        return path
    if not is_official_release(path) and not is_llava_hf(path):
        model_type = read_json(path / "config.json").get("model_type")
        raise WeightsError(
            f"{path} is a checkpoint of type {model_type!r}; known are those of vistoken, official "
            "LLaVA and LLaVA-SP releases, and Hugging Face Llava"
        )
    return _converted(path)


def _converted(source: Path) -> Path:
    out = cache_dir() / "converted" / f"{source.resolve().name}-{content_id(source)[:16]}"
    if (out / "config.json").is_file():
        return out
    logger.info("converting %s once, to %s", source, out)
    try:
        if is_llava_hf(source):
            convert_llava_hf(source, out)
        else:
            _convert_official(source, out)
    except (VistokenError, OSError):
        # another process may have finished the same conversion meanwhile
        if not (out / "config.json").is_file():
            raise
    return out


def _convert_official(source: Path, out: Path) -> None:
    """A light copy where possible: it takes megabytes where a full one takes gigabytes."""
    try:
        convert_llava_sp(source, out)
    except UsageError:
        convert_llava_sp(source, out, merge=True)


def content_id(directory: Path) -> str:
    """Identify a directory's content without reading gigabytes.

    Files in the hub's cache are named by their hashes; others count by name, size and time of
    change.
    """
    hasher = hashlib.sha256(f"format {FORMAT}\n".encode())
    hasher.update(f"{directory.resolve()}\n".encode())
    for path in sorted(p for p in directory.iterdir() if p.is_file()):
        status = path.stat()
        blob = path.resolve().name if path.is_symlink() else status.st_mtime_ns
        hasher.update(f"{path.name} {status.st_size} {blob}\n".encode())
    return hasher.hexdigest()
