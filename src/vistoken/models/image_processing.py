"""The image processor: pictures -> pixels and view table, by the checkpoint's view function."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from PIL import ExifTags, Image
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from vistoken.core.errors import DataError, UsageError
from vistoken.core.parts import ViewFunction
from vistoken.core.tables import split_media
from vistoken.models.images import MAX_PIXELS, open_image
from vistoken.models.pipeline import PipelineSpec, TokenPlan

_PASSED_ON = ("data_format", "device", "disable_grouping", "input_data_format")
"""Options that Hugging Face's processors hand to every image processor; none matters here."""


class VistokenImageProcessor(BaseImageProcessor):
    """Turns pictures into encoder inputs, the same way for training, evaluation and serving.

    Args:
        pipeline: :meth:`PipelineSpec.to_dict` of the model it belongs to; holds the view function
            and its settings.
    """

    model_input_names = ["pixel_values", "view_table"]

    def __init__(self, pipeline: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline or {}

    @cached_property
    def _spec(self) -> PipelineSpec:
        return PipelineSpec.from_dict(self.pipeline)

    @cached_property
    def _views(self) -> ViewFunction:
        return self._spec.view_function()

    @cached_property
    def _plan(self) -> TokenPlan:
        return TokenPlan(self._spec)

    @property
    def spec(self) -> PipelineSpec:
        """The pipeline this processor serves."""
        return self._spec

    @property
    def plan(self) -> TokenPlan:
        """Predicts tokens from view tables."""
        return self._plan

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings (without what is derived from them)."""
        values: dict[str, Any] = super().to_dict()
        return {k: v for k, v in values.items() if k not in ("_spec", "_views", "_plan")}

    def view_table(self, height: int, width: int) -> Tensor:
        """Predict the ViewTable (V, K) of a picture of this size in pixels."""
        return self._views.view_table(height, width)

    def token_map(self, height: int, width: int) -> Tensor:
        """Predict the TokenMap (N, K) of a picture of this size in pixels."""
        return self._plan.token_map(self.view_table(height, width))

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open pictures wherever they are named; Hugging Face's own loader is not used.

        Args:
            image_url_or_urls: A picture or a nested list of pictures: anything that
                :func:`~vistoken.models.images.open_image` reads. URLs are refused: download
                them, or open them with ``allow_url=True`` first.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(item) for item in image_url_or_urls]
        return open_image(image_url_or_urls)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """See :meth:`preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self, images: Any, return_tensors: str | None = None, **options: Any
    ) -> BatchFeature:
        """Prepare pictures.

        Args:
            images: A picture or a (nested) list of pictures: anything that
                :func:`~vistoken.models.images.open_image` reads.
            return_tensors: Tensors are returned in any case.
            **options: Hugging Face's options mean nothing here: the view function decides.

        Raises:
            UsageError: An option with a value; how a picture is prepared is stored with the
                checkpoint.

        Returns:
            ``pixel_values``, (V, 3, H, W) float32 or a list where sizes differ; ``view_table``,
            (V, K) int64.
        """
        unknown = sorted(
            name for name, value in options.items() if name not in _PASSED_ON and value is not None
        )
        if unknown:
            raise UsageError(
                f"the image processor takes no option {unknown[0]!r}; how pictures are prepared "
                "is set by 'views' and 'towers' in the checkpoint's pipeline"
            )
        pixels: list[Tensor] = []
        tables: list[Tensor] = []
        for number, image in enumerate(flatten(images)):
            picture = _readable(image, where=f"image {number}")
            views = self._views.pixels(picture)
            table = self._views.view_table(picture.height, picture.width)
            if len(views) != len(table):
                raise ValueError(f"view part gave {len(views)} views, its table {len(table)} rows")
            pixels += views
            tables.append(table)
        if not tables:
            raise DataError("no picture was given to the image processor")
        same = all(view.shape == pixels[0].shape for view in pixels)
        return BatchFeature(
            {
                "pixel_values": torch.stack(pixels) if same else pixels,
                "view_table": torch.cat(tables),
            }
        )


def _readable(image: Any, where: str) -> Image.Image:
    """The picture, upright RGB; one that is so already is read where it lies and not copied."""
    # exactly this class: pictures of open files have frames and rotation notes of their own kinds
    if (
        type(image) is Image.Image
        and image.mode == "RGB"
        and 0 < image.width * image.height <= MAX_PIXELS
        and not image.has_transparency_data
        and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    ):
        return image
    return open_image(image, where=where)


def flatten(images: Any) -> list[Any]:
    """Flatten a picture or a nested list of pictures, leaving out empty lists."""
    if isinstance(images, (list, tuple)):
        return [picture for item in images for picture in flatten(item)]
    return [images]


def views_of(view_table: Tensor, image: int) -> Tensor:
    """The rows of one image in a batch's view table."""
    return split_media(view_table)[image]
