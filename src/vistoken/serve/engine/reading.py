"""Reading a prompt piece by piece: its pictures, then its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from vistoken.models.outputs import ImageFeatures
from vistoken.serve.engine.decoders import Decoder, Reading
from vistoken.serve.engine.features import FeatureCache, side_by_side
from vistoken.serve.engine.job import Job
from vistoken.serve.engine.prepare import Shown

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration


class Reader:
    """Encodes pictures, or finds them again, and lets the decoder read the prompt.

    Args:
        model: The model.
        decoder: Reads tokens.
        features: Visual tokens seen before.
    """

    def __init__(
        self, model: VistokenForConditionalGeneration, decoder: Decoder, features: FeatureCache
    ) -> None:
        self._model, self._decoder, self._features = model, decoder, features

    def __call__(self, job: Job) -> Reading:
        """Read a request's prompt; pauses after every piece, so that others get their turn."""
        shown: list[ImageFeatures] = []
        for picture in job.prompt.pictures:
            known = self._features.get(picture.key)
            if known is None:
                known = self._encode(picture)
                self._features.put(picture.key, known)
                yield
            else:
                job.usage.cached_pictures += 1
            shown.append(known)
        together = side_by_side(shown) if shown else None
        return (yield from self._decoder.read(job.prompt, together))

    def _encode(self, picture: Shown) -> ImageFeatures:
        device, dtype = self._model.device, self._model.dtype
        pixels = picture.pixels
        if isinstance(pixels, Tensor):
            pixels = pixels.to(device, dtype)
        else:
            pixels = [view.to(device, dtype) for view in pixels]
        return self._model.get_image_features(pixels, picture.views)
