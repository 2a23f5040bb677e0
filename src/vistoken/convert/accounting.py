"""Strict bookkeeping: every tensor of a source has a place here, every place has a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from vistoken.convert.pickles import TensorStore
from vistoken.convert.report import UNUSED, Row
from vistoken.core.errors import WeightsError

_SHOWN = 5


@dataclass
class Ledger:
    """Where each tensor of the sources goes.

    Args:
        shapes: Our tensor names with their shapes.
        vocab_size: Rows of the token embeddings before the image token's row; None when the
            source has that row already.
    """

    shapes: Mapping[str, tuple[int, ...]]
    vocab_size: int | None
    rows: list[Row] = field(default_factory=list)
    targets: dict[str, tuple[TensorStore, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, store: TensorStore, key: str, target: str, use: str) -> None:
        """Give one tensor its place, or note why it has none."""
        file, shape = store.files[key].name, tuple(store[key].shape)
        if target not in self.shapes:
            self.problems.append(f"{key} in {file} is unexpected")
            return
        needed = self.source_shape(target)
        if shape != needed:
            self.problems.append(f"{key} in {file} is {shape} where {needed} is needed")
        if target in self.targets:
            self.problems.append(f"{key} in {file} stands for {target}, as another tensor does")
        self.targets[target] = (store, key)
        self.rows.append(Row(file, key, shape, use, target))

    def skip(self, store: TensorStore, key: str, note: str) -> None:
        """Note a tensor that is not needed, and why."""
        self.rows.append(Row(store.files[key].name, key, tuple(store[key].shape), UNUSED, "", note))

    def require(self, names: Iterable[str], where: str, key_of: Mapping[str, str]) -> None:
        """Note every place among ``names`` that no tensor took.

        Args:
            names: Our names.
            where: The file or folder that should have held them.
            key_of: Our name -> the source's key, for the message.
        """
        for name in names:
            if name not in self.targets:
                self.problems.append(f"{key_of.get(name, name)} is missing from {where}")

    def check(self, what: str, fix: str) -> None:
        """Raise WeightsError if anything was noted."""
        if not self.problems:
            return
        more = f" and {len(self.problems) - _SHOWN} more" if len(self.problems) > _SHOWN else ""
        raise WeightsError(f"{what}: {'; '.join(self.problems[:_SHOWN])}{more}; {fix}")

    def state(self) -> dict[str, Tensor]:
        """Tensors by our names, as the sources hold them."""
        return {target: store[key] for target, (store, key) in self.targets.items()}

    def source_shape(self, target: str) -> tuple[int, ...]:
        """Shape that a source's tensor must have for a place of ours."""
        shape = tuple(self.shapes[target])
        if self.vocab_size is not None and is_vocabulary(target):
            return (self.vocab_size, *shape[1:])
        return shape


def is_vocabulary(name: str) -> bool:
    """Whether a tensor of ours has one row per token id."""
    return name in ("model.language_model.embed_tokens.weight", "lm_head.weight")


def tower_target(key: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Our name for a vision tower's own key; older checkpoints have one more level in it."""
    prefix = "model.vision_tower."
    plain = prefix + key.removeprefix("vision_model.")
    return plain if plain in shapes else prefix + key


def language_target(key: str) -> str:
    """Our name for a causal language model's own key."""
    return "model.language_model." + key.removeprefix("model.") if key != _HEAD else key


def file_of(directory: Path, store: TensorStore) -> str:
    """How to call the place where a missing tensor should be."""
    names = sorted({path.name for path in store.files.values()})
    return str(directory / names[0]) if len(names) == 1 else str(directory)


_HEAD = "lm_head.weight"
