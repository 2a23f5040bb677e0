"""Stage 0: visual tokens at the names of what they show; see ``train/alignment.py``."""

from __future__ import annotations

from typing import Any

from vistoken.core.objectives import MicroBatch, Objective, StepLoss
from vistoken.train.alignment import score
from vistoken.train.encoders import encode_patches


class NameAlignment(Objective):
    """Cross-entropy of patch tokens over the names; no pass of the language model."""

    rows = "scenes"
    runs_language_model = False
    needs_names = True
    unit = "images"

    def __init__(self, names: Any = None) -> None:
        super().__init__(names)
        self._scores: dict[str, float] = {}

    def loss(self, batch: MicroBatch) -> StepLoss:
        """Run the connector."""
        if self.names is None:
            raise ValueError("name-alignment needs names")
        scenes = batch.inputs["scenes"]
        patches = encode_patches(batch.model, batch.inputs["pictures"])
        loss, found = score(self.names, patches, scenes)
        tokens = sum(len(picture.tokens) for picture in patches)
        targets = found.names[1] + found.colours[1]
        batch.count(len(scenes), tokens, targets, tokens)
        self._scores = {
            "train_retrieval/names": found.name_accuracy,
            "train_retrieval/colours": found.colour_accuracy,
        }
        return StepLoss(loss, targets)

    def scores(self) -> dict[str, float]:
        """Retrieval over the latest batch."""
        return self._scores
