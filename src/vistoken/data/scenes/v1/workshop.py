"""What the parts of a set share: seed, size and the sources, each fetched when first needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from vistoken.data.scenes.icons import IconSource
from vistoken.data.scenes.shapes import ShapeSource
from vistoken.data.scenes.sources import Credit, DrawingSource
from vistoken.data.scenes.v1.cutouts import CutoutSource
from vistoken.data.scenes.v1.splits import Split
from vistoken.data.scenes.v1.surfaces import Surfaces

Progress = Callable[[str, int, int], None]
SOURCES = ("icons", "shapes")


class Workshop:
    """Sources and settings of one set.

    Args:
        seed: Seed of the set.
        size_px: Height and width of the pictures.
        source: One of `SOURCES`.
        progress: Called with a stage, the number done and the total while icons are rendered.
    """

    def __init__(
        self, seed: int, size_px: int, source: str, progress: Progress | None = None
    ) -> None:
        self.seed = seed
        self.size_px = size_px
        self.credits: dict[str, Credit] = {}
        self._source = source
        self._progress = progress

    @cached_property
    def icons(self) -> DrawingSource:
        """The icons, or the shapes that stand in for them."""
        source: DrawingSource = (
            ShapeSource() if self._source == "shapes" else IconSource(progress=self._progress)
        )
        self.credits |= source.credits
        return source

    @cached_property
    def cutouts(self) -> CutoutSource:
        """Cut-outs that training shows."""
        source = CutoutSource(held_out=False)
        self.credits |= source.credits
        return source

    @cached_property
    def held_out_cutouts(self) -> CutoutSource:
        """Cut-outs that training does not show."""
        source = CutoutSource(held_out=True)
        self.credits |= source.credits
        return source

    @cached_property
    def surfaces(self) -> Surfaces:
        """Photographs of surfaces."""
        surfaces = Surfaces()
        self.credits |= surfaces.credits
        return surfaces

    def drawings_of(self, split: Split) -> DrawingSource:
        """The drawings that a split's scenes are made of."""
        if split.drawings == "icons":
            return self.icons
        return self.cutouts if split.drawings == "cut-outs" else self.held_out_cutouts
