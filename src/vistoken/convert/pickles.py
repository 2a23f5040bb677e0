"""Reading weight files of other projects: safetensors and pickles, whole or in shards.

A pickle is read by torch's restricted loader, which builds tensors and plain containers and
refuses everything else, so no code of the file's author ever runs.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vistoken.core.errors import WeightsError

INDEX_SUFFIX = ".index.json"
_PICKLES = (".bin", ".pt", ".pth")


@dataclass
class TensorStore(Mapping[str, Tensor]):
    """Tensors by key, each with the file it came from.

    Args:
        tensors: Key -> tensor, on the CPU; memory-mapped where the format allows it.
        files: Key -> file.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def add(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Add one file's tensors.

        Raises:
            WeightsError: A key is already there from another file.
        """
        for key, tensor in tensors.items():
            if key in self.tensors:
                raise WeightsError(
                    f"{key} stands in both {self.files[key]} and {path}; remove the file that does "
                    "not belong to this checkpoint"
                )
            self.tensors[key] = tensor
            self.files[key] = path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read one weight file.

    Args:
        path: A ``.safetensors`` file or a pickle (``.bin``, ``.pt``, ``.pth``).

    Returns:
        Its tensors by key, on the CPU.

    Raises:
        WeightsError: The file is missing, damaged, holds code, or is not a flat table of tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; the checkpoint is incomplete, fetch it again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLES:
        return _read_pickle(path)
    raise WeightsError(f"{path} is no weight file; expected .safetensors or .bin")


def read_index(index: Path) -> TensorStore:
    """Read a sharded checkpoint by its index file, all of it or nothing.

    Raises:
        WeightsError: The index cannot be read, a shard is missing, or a tensor is not where the
            index says.
    """
    shards = _shards(index)
    absent = sorted(name for name in shards if not (index.parent / name).is_file())
    if absent:
        raise WeightsError(
            f"{index.parent} lacks {len(absent)} of {len(shards)} weight files, "
            f"{', '.join(absent[:3])}; fetch the checkpoint again"
        )
    store = TensorStore()
    for name, keys in shards.items():
        tensors = read_tensors(index.parent / name)
        lost = sorted(keys.difference(tensors))
        if lost:
            raise WeightsError(
                f"{index.parent / name} lacks {lost[0]} and {len(lost) - 1} more tensors that "
                f"{index.name} promises; fetch the checkpoint again"
            )
        store.add(index.parent / name, tensors)
    return store


def read_files(paths: list[Path]) -> TensorStore:
    """Read weight files and shard indices into one store."""
    store = TensorStore()
    for path in paths:
        if path.name.endswith(INDEX_SUFFIX):
            part = read_index(path)
            for key in part:
                store.add(part.files[key], {key: part[key]})
        else:
            store.add(path, read_tensors(path))
    return store


def find_weights(directory: Path, stem: str) -> Path | None:
    """Find a checkpoint's weights: ``stem`` as one file or as a shard index.

    Safetensors come before pickles. For Hugging Face checkpoints the pickle of ``model`` is called
    ``pytorch_model.bin``; ask for either stem.

    Raises:
        WeightsError: There are shards without their index.
    """
    for ending in (".safetensors", ".bin"):
        for name in (f"{stem}{ending}", f"{stem}{ending}{INDEX_SUFFIX}"):
            if (directory / name).is_file():
                return directory / name
        shards = sorted(directory.glob(f"{stem}-*-of-*{ending}"))
        if shards:
            raise WeightsError(
                f"{directory} has {shards[0].name} but no {stem}{ending}{INDEX_SUFFIX}; "
                "fetch the checkpoint again, with its index"
            )
    return None


def _shards(index: Path) -> dict[str, set[str]]:
    """File name -> keys that the index places in it."""
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for key, name in places.items():
            if Path(name).name != name:
                raise WeightsError(f"{index} places {key} outside its folder, in {name}")
            shards.setdefault(name, set()).add(key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} is no index of weight files ({error}); fetch it again"
        ) from error
    return shards


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged ({error}); fetch it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # only torch's own zip format can be mapped into memory; older files are plain pickles
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise WeightsError(_explain_refusal(path, error)) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise WeightsError(f"{path} is damaged ({first}); fetch it again") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise WeightsError(
            f"{path} is not a flat table of named tensors; save the model's state dict alone"
        )
    return loaded


def _explain_refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """The restricted loader refuses code and stumbles over noise in one exception type."""
    if "Unsupported" in str(error) or "GLOBAL" in str(error):
        return (
            f"{path} holds pickled code, which is never run; ask its author for safetensors, or "
            "convert it where you trust it"
        )
    return f"{path} is damaged or no weight file at all; fetch it again"
