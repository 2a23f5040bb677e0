"""Names read off the connector's output: whether what stage 0 taught is still there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vistoken.train.alignment import NameSpace, score
from vistoken.train.encoders import encode_patches
from vistoken.train.examples import ScenePicture
from vistoken.train.samples import SceneCollator

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration

_BATCH = 8


@dataclass(frozen=True)
class NameProbe:
    """Annotated pictures and the words to choose from."""

    names: NameSpace | None
    pictures: Sequence[ScenePicture]
    collate: SceneCollator | None

    @torch.no_grad()
    def __call__(self, model: VistokenForConditionalGeneration) -> dict[str, float]:
        """How often the tokens of the pictures are nearest to the right word; empty without any."""
        if self.names is None or self.collate is None or not self.pictures:
            return {}
        names, colours, loss = [0, 0], [0, 0], 0.0
        for start in range(0, len(self.pictures), _BATCH):
            batch = self.collate(self.pictures[start : start + _BATCH])
            patches = encode_patches(model, batch["pictures"])
            mean, found = score(self.names, patches, batch["scenes"])
            loss += float(mean) * (found.names[1] + found.colours[1])
            names = [a + b for a, b in zip(names, found.names, strict=True)]
            colours = [a + b for a, b in zip(colours, found.colours, strict=True)]
        return {
            "retrieval/names": names[0] / max(names[1], 1),
            "retrieval/colours": colours[0] / max(colours[1], 1),
            "retrieval/loss": loss / max(names[1] + colours[1], 1),
        }
