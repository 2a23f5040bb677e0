"""Options of the part ``row-col``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowColConfig:
    """Options of ``row-col``.

    Args:
        std: Spread of the embeddings at the start of training; 0 leaves the tokens as they come,
            so that a model with the stage begins as the model without it.
    """

    std: float = 0.0

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"std must be 0 or more, got {self.std}")
