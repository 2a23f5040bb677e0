"""From a model's name to a checkpoint directory of ours, converting foreign ones once."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

from vistoken.convert.bases import base_name
from vistoken.convert.llava import convert_llava_sp
from vistoken.convert.llava_hf import convert_llava_hf, is_llava_hf
from vistoken.convert.official_config import tower_name
from vistoken.convert.release import ADAPTER_CONFIG, is_official_release, read_json
from vistoken.convert.sources import fetch, find_local, looks_like_hub_id
from vistoken.core.errors import UsageError, VistokenError, WeightsError
from vistoken.models.cache_dir import cache_dir
from vistoken.models.checkpoint import is_light
from vistoken.models.references import is_random, locate, read_references

logger = logging.getLogger(__name__)

FORMAT = 3
"""Raised when a conversion changes, so that copies made by an older version are made again.

A test holds what the golden releases become against a digest and says when this is to be raised.
"""


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
        if _has_its_parts(out):
            return out
        shutil.rmtree(out)
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


def _has_its_parts(converted: Path) -> bool:
    """Whether the models that a converted copy refers to are still where they were.

    Changed ones have changed the copy's name (:func:`content_id`), so no digest is computed here.
    """
    if not is_light(converted):
        return True
    try:
        sources = [reference.source for reference in read_references(converted)]
    except WeightsError:
        return False
    return all(is_random(source) or Path(locate(source)).is_dir() for source in sources)


def content_id(directory: Path) -> str:
    """Identify the content of a release, its base and its tower without reading gigabytes.

    Files in the hub's cache are named by their hashes; others count by name, size and time of
    change.
    """
    hasher = hashlib.sha256(f"format {FORMAT}\n".encode())
    for folder in (directory, *_foundation(directory)):
        hasher.update(f"{folder.resolve()}\n".encode())
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            status = path.stat()
            blob = path.resolve().name if path.is_symlink() else status.st_mtime_ns
            hasher.update(f"{path.name} {status.st_size} {blob}\n".encode())
    return hasher.hexdigest()


def _foundation(release: Path) -> list[Path]:
    """Language model and vision tower of an official release, as far as they are on this machine.

    A Hugging Face checkpoint holds both itself.
    """
    if is_llava_hf(release):
        return []
    config = read_json(release / "config.json")
    adapter = release / ADAPTER_CONFIG
    named = base_name(config, read_json(adapter) if adapter.is_file() else {})
    found = [find_local(release, name) for name in (named, tower_name(config))]
    return [path for path in found if path is not None]
