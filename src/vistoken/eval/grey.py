"""The blind control: a uniform grey picture, as large as the real one, in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from vistoken.models.images import open_image
from vistoken.train.encoders import Pictures

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor

GREY = (128, 128, 128)


class GreyEncoder:
    """Gives a grey picture of the same size for every picture; each size is encoded once."""

    def __init__(
        self, model: VistokenForConditionalGeneration, processor: VistokenProcessor
    ) -> None:
        self.model, self.processor = model, processor
        self.by_size: dict[tuple[int, int], Pictures] = {}

    def __call__(self, images: Sequence[Path]) -> Pictures:
        """Encode grey pictures as large as the files."""
        parts = [self._of_size(open_image(image).size) for image in images]
        features = [maps for part in parts for maps in part.tower_features or []]
        return Pictures(torch.cat([part.view_table for part in parts]), features)

    @torch.inference_mode()
    def _of_size(self, size: tuple[int, int]) -> Pictures:
        if size not in self.by_size:
            inputs = self.processor.image_processor([Image.new("RGB", size, GREY)])
            features, _ = self.model.model.encode(inputs["pixel_values"], inputs["view_table"])
            self.by_size[size] = Pictures(inputs["view_table"], features)
        return self.by_size[size]
