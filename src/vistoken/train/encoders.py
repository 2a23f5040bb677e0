"""Pictures of a batch: read from the feature cache, or as pixels for the towers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vistoken.train.cache import CachedImage, FeatureCache

if TYPE_CHECKING:
    from vistoken.models.processing import VistokenProcessor


@dataclass(frozen=True)
class Pictures:
    """Images of a batch, ready for the connector.

    Attributes:
        view_table: (V, K) int64.
        tower_features: For each anchor view, one map per tower; None when pixels are given.
        pixel_values: Views; None when features are given.
    """

    view_table: Tensor
    tower_features: list[tuple[Tensor, ...]] | None
    pixel_values: Any = None


class Encoder(Protocol):
    """Gives the pictures of a batch."""

    def __call__(self, images: Sequence[Path]) -> Pictures:
        """Encode files, in order."""


@dataclass(frozen=True)
class CachedEncoder:
    """Pictures from the feature cache."""

    cache: FeatureCache

    def __call__(self, images: Sequence[Path]) -> Pictures:
        """Read features, encoding what is missing."""
        cached: list[CachedImage] = [self.cache.get(image) for image in images]
        return Pictures(
            torch.cat([image.view_table for image in cached]),
            [maps for image in cached for maps in image.tower_features],
        )


@dataclass(frozen=True)
class PixelEncoder:
    """Pictures as pixels, for towers that are trained or not cached."""

    processor: VistokenProcessor

    def __call__(self, images: Sequence[Path]) -> Pictures:
        """Preprocess files."""
        inputs = self.processor.image_processor([str(image) for image in images])
        return Pictures(inputs["view_table"], None, inputs["pixel_values"])
