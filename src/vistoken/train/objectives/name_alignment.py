"""Stage 0: visual tokens at the names of what they show; see ``train/alignment.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistoken.train.alignment import NameSpace, score
from vistoken.train.encoders import Encoder, encode_patches
from vistoken.train.examples import read_pictures
from vistoken.train.metrics import Meter
from vistoken.train.objectives.base import Objective, StageItems, StepLoss
from vistoken.train.samples import SceneCollator
from vistoken.train.settings import StageConfig

if TYPE_CHECKING:
    from vistoken.data.reading import BadSamples
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor


class NameAlignment(Objective):
    """Cross-entropy of patch tokens over the names; no pass of the language model."""

    runs_language_model = False
    needs_names = True
    unit = "images"

    def __init__(self, names: NameSpace | None) -> None:
        super().__init__(names)
        self._scores: dict[str, float] = {}

    @classmethod
    def read(
        cls, files: Sequence[Path], root: Path | None, stage: StageConfig, bad: BadSamples
    ) -> StageItems:
        """Annotated pictures."""
        pictures = read_pictures(files, root)
        return StageItems(pictures, [picture.image for picture in pictures])

    @classmethod
    def collator(
        cls, stage: StageConfig, processor: VistokenProcessor, encode: Encoder, bad: BadSamples
    ) -> SceneCollator:
        """Pictures with their scenes."""
        return SceneCollator(encode)

    def loss(
        self, model: VistokenForConditionalGeneration, inputs: dict[str, Any], meter: Meter
    ) -> StepLoss:
        """Run the connector."""
        if self.names is None:
            raise ValueError("name-alignment needs names")
        patches = encode_patches(model, inputs["pictures"])
        loss, found = score(self.names, patches, inputs["scenes"])
        tokens = sum(len(picture.tokens) for picture in patches)
        targets = found.names[1] + found.colours[1]
        meter.count(len(inputs["scenes"]), tokens, targets, tokens)
        self._scores = {
            "train_retrieval/names": found.name_accuracy,
            "train_retrieval/colours": found.colour_accuracy,
        }
        return StepLoss(loss, targets)

    def scores(self) -> dict[str, float]:
        """Retrieval over the latest batch."""
        return self._scores
