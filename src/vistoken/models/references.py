"""References of a light checkpoint: where its frozen parts come from, and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from vistoken.core.errors import WeightsError
from vistoken.models.cache_dir import cache_dir

REFERENCES = "references.json"
RANDOM = "random"
_NANO = "nano:"
_MARKER = "vistoken_part.json"
_WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Reference:
    """Where a frozen part comes from.

    Args:
        part: ``vision_tower.<name>`` or ``language_model``.
        source: ``nano:<part>``, a directory, a hub id, or ``random:<seed>``.
        digest: :func:`digest_of_source` when the reference was made; empty for random weights.
    """

    part: str
    source: str
    digest: str

    @classmethod
    def to(cls, part: str, source: str, seed: int = 0) -> Reference:
        """Refer to a source as it is now; ``random`` becomes ``random:<seed>``."""
        if is_random(source):
            return cls(part, source if ":" in source else f"{RANDOM}:{seed}", "")
        return cls(part, source, digest_of_source(source))

    def verify(self) -> None:
        """Raise WeightsError unless the source still holds the same weights."""
        if not is_random(self.source) and digest_of_source(self.source) != self.digest:
            raise WeightsError(
                f"the {self.part} weights in {self.source} have changed since this checkpoint was "
                "saved; restore them, or name the right ones in references.json"
            )


def is_random(source: str) -> bool:
    """Whether a source stands for freshly drawn weights."""
    return source == RANDOM or source.startswith(f"{RANDOM}:")


def random_seed(references: Sequence[Reference]) -> int:
    """Seed of the random references; 0 when there is none."""
    for reference in references:
        if is_random(reference.source):
            return int(reference.source.partition(":")[2] or 0)
    return 0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seeded generator inside, and leave the caller's as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def locate(source: str) -> str:
    """Turn a source into what ``from_pretrained`` takes: ``nano:<part>``, a path or a hub id.

    Raises:
        WeightsError: A nano part was not fetched yet.
    """
    if not source.startswith(_NANO):
        return source
    path = cache_dir() / "nano" / source.removeprefix(_NANO)
    if not path.is_dir():
        raise WeightsError(
            f"the embedded weights {source.removeprefix(_NANO)!r} are not here yet; "
            "fetch them once with: vistoken data fetch nano"
        )
    return str(path)


def digest_of_source(source: str) -> str:
    """sha256 over the names and sha256 of a source's weight files.

    The embedded parts were hashed when they were made, so theirs are read, not computed.

    Raises:
        WeightsError: The source is not here, or holds no weights.
    """
    directory = Path(locate(source))
    if not directory.is_dir():
        directory = _snapshot(source)
    marker = directory / _MARKER
    if source.startswith(_NANO) and marker.is_file():
        known = json.loads(marker.read_text(encoding="utf-8"))["files"]
        hashes = {name: entry["sha256"] for name, entry in known.items()}
    else:
        files = [path for pattern in _WEIGHT_FILES for path in directory.glob(pattern)]
        hashes = {path.name: _file_sha256(path) for path in files}
    weights = {n: h for n, h in hashes.items() if Path(n).suffix in (".safetensors", ".bin")}
    if not weights:
        raise WeightsError(f"{directory} holds no weights (.safetensors or .bin files)")
    lines = "".join(f"{name} {weights[name]}\n" for name in sorted(weights))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_references(directory: Path) -> list[Reference]:
    """References of a light checkpoint."""
    path = directory / REFERENCES
    try:
        return [Reference(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); save the checkpoint again") from error


def write_references(directory: Path, references: Sequence[Reference]) -> None:
    """Write references into a checkpoint directory that is being made."""
    text = json.dumps([asdict(reference) for reference in references], indent=1)
    (directory / REFERENCES).write_text(text + "\n", encoding="utf-8")


def _snapshot(source: str) -> Path:
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise WeightsError(
            f"weights {source!r} are neither a directory nor in the hub cache; fetch them first"
        ) from error


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
