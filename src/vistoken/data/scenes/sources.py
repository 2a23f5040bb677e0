"""What a scene is drawn from: named drawings in several styles, some of them held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from vistoken.data.scenes.names import Name


@dataclass(frozen=True)
class Credit:
    """Who made a set of drawings and under which terms.

    Attributes:
        title: Name of the set.
        author: Its makers.
        license: SPDX identifier.
        origin: Package and version, or "drawn by vistoken".
        integrity: Hash of the fetched archive; empty for what is drawn here.
    """

    title: str
    author: str
    license: str
    origin: str
    integrity: str = ""


class DrawingSource(Protocol):
    """Named drawings with transparent surroundings.

    Attributes:
        title: Short name of the source.
        names: Everything that can be drawn.
        confusable: Words that may also be said of the same drawing, by word.
        train_styles: Styles that training scenes use.
        held_out_styles: Styles that no training scene shows.
        may_mirror: Whether a mirrored drawing keeps its name.
        credits: Licences, by style.
    """

    title: str
    names: tuple[Name, ...]
    confusable: dict[str, frozenset[str]]
    train_styles: tuple[str, ...]
    held_out_styles: tuple[str, ...]
    may_mirror: bool
    credits: dict[str, Credit]

    def drawing(self, name: Name, style: str) -> Image.Image:
        """Draw one thing.

        Args:
            name: One of `names`.
            style: One of the styles.

        Returns:
            RGBA picture, cropped to what is visible.
        """
        ...

    def background_clashes(self, name: Name, colour: str) -> bool:
        """Tell whether a thing would vanish on a background.

        Args:
            name: One of `names`.
            colour: Word of a background colour.

        Returns:
            True if the two must not meet.
        """
        ...
