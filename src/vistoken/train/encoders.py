"""Pictures of a batch: read from the feature cache, or as pixels for the towers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vistoken.core.tables import split_media
from vistoken.models.pipeline import anchor_rows
from vistoken.train.alignment import PatchTokens, patch_tokens
from vistoken.train.cache import CachedImage, FeatureCache

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.outputs import ImageFeatures
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

    def take(self, media: Sequence[int]) -> Pictures:
        """The pictures of these numbers, in this order; a number may come more than once."""
        tables = split_media(self.view_table)
        if list(media) == list(range(len(tables))):
            return self
        views = [0, *accumulate(len(table) for table in tables)]
        anchors = [0, *accumulate(len(anchor_rows(table)) for table in tables)]
        features, pixels = self.tower_features, self.pixel_values
        if features is not None:
            features = [maps for m in media for maps in features[anchors[m] : anchors[m + 1]]]
        if pixels is not None:
            chosen = [pixels[v] for m in media for v in range(views[m], views[m + 1])]
            pixels = torch.stack(chosen) if isinstance(pixels, Tensor) else chosen
        return Pictures(torch.cat([tables[m] for m in media]), features, pixels)


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


def encode_pictures(
    model: VistokenForConditionalGeneration, pictures: Pictures | None
) -> ImageFeatures | None:
    """Visual tokens of a batch's pictures; None without pictures."""
    if pictures is None:
        return None
    features: ImageFeatures = model.get_image_features(
        pixel_values=pictures.pixel_values,
        view_table=pictures.view_table,
        tower_features=pictures.tower_features,
    )
    return features


def encode_patches(
    model: VistokenForConditionalGeneration, pictures: Pictures
) -> list[PatchTokens]:
    """The connector's patch tokens of every picture of a batch."""
    features = pictures.tower_features
    if features is None:
        features, _ = model.model.encode(pictures.pixel_values, pictures.view_table)
    return patch_tokens(model, features, pictures.view_table)
