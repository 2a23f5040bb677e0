"""The splits of vistoken-scenes 1: which things, styles and compositions each may show."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from vistoken.data.scenes.names import Name

SET_NAME = "vistoken-scenes-v1"
# One name in twelve is never shown or spoken of in training; one in ten of the rest is common.
_HELD_OUT_ONE_IN = 12
_POPULAR_ONE_IN = 10


@dataclass(frozen=True)
class Profile:
    """How the scenes of a split are filled.

    Attributes:
        object_counts: How often a scene has so many objects.
        sides: Shortest and longest possible longer side of a drawing, as shares of the picture.
        crowded: Whether things stand in the cells of a 3 x 3 grid at full size.
    """

    object_counts: tuple[tuple[int, float], ...]
    sides: tuple[float, float]
    crowded: bool = False


MIXED = Profile(
    (
        (1, 0.25),
        (2, 0.35),
        (3, 0.30),
        (4, 0.04),
        (5, 0.03),
        (6, 0.01),
        (7, 0.01),
        (8, 0.01),
    ),
    (0.2, 0.5),
)
# Many labelled drawings for one pass of the towers: what the alignment of names needs.
# 8 to 24 pixels of 336.
TINY = Profile(((1, 0.4), (2, 0.35), (3, 0.25)), (0.024, 0.0714))
DENSE = Profile(((6, 0.2), (7, 0.2), (8, 0.2), (9, 0.4)), (0.21, 0.33), crowded=True)


@dataclass(frozen=True)
class Split:
    """One file of the set.

    Attributes:
        profile: How its scenes are filled.
        note: What it is, for the data card.
        scenes: How many scenes it has at full size.
        varied: Share of drawings whose tint, tilt, outline or sharpness is changed.
        held_out_styles: Whether it uses the styles that training never shows.
        held_out_classes: Whether it uses the names that training never shows.
        held_out_compositions: Whether its sets of names are kept out of training; None where its
            names are.
        unseen_phrasings: Share of questions put in wordings that training never uses.
        drawings: Icons (or shapes), or cut-outs: those that training shows or those it does not.
        surfaces: Share of backgrounds that are photographs of surfaces instead of a colour.
        asked: All kinds of questions, the number of things only, or what suits tiny things.
    """

    profile: Profile
    note: str
    scenes: int
    varied: float = 0.0
    held_out_styles: bool = False
    held_out_classes: bool = False
    held_out_compositions: bool | None = True
    unseen_phrasings: float = 0.35
    drawings: Literal["icons", "cut-outs", "held-out cut-outs"] = "icons"
    surfaces: float = 0.0
    asked: Literal["all", "count", "tiny"] = "all"


# The first five do not change within version 1: what is trained on them stays comparable.
SPLITS: dict[str, Split] = {
    "train": Split(
        MIXED,
        "training styles, half of the drawings varied in tint, tilt, outline, blur, mirroring",
        14_000,
        varied=0.5,
        held_out_compositions=False,
        unseen_phrasings=0.0,
    ),
    "dense": Split(
        DENSE,
        "as train, but six to nine different things to a picture and a single question",
        3_000,
        varied=0.5,
        held_out_compositions=False,
        unseen_phrasings=0.0,
        asked="count",
    ),
    "val": Split(MIXED, "training styles as drawn; compositions held out", 600),
    "style": Split(
        MIXED, "a held-out style as drawn; compositions held out", 600, held_out_styles=True
    ),
    "classes": Split(
        MIXED,
        "training styles as drawn; names that training never shows",
        400,
        held_out_classes=True,
        held_out_compositions=None,
    ),
    "small": Split(
        TINY,
        "one to three drawings of 8 to 24 px (at 336), training styles and compositions",
        1_500,
        held_out_compositions=False,
        unseen_phrasings=0.0,
        asked="tiny",
    ),
    "small-val": Split(TINY, "as small; compositions held out", 200, asked="tiny"),
    "cutouts": Split(
        MIXED,
        "photo cut-outs and clip art, half of them on photographed surfaces",
        3_000,
        varied=0.3,
        held_out_compositions=False,
        unseen_phrasings=0.0,
        drawings="cut-outs",
        surfaces=0.5,
    ),
    "cutouts-val": Split(
        MIXED,
        "pictures and compositions that cutouts does not show, of words known from other pictures",
        300,
        drawings="held-out cut-outs",
        surfaces=0.5,
    ),
}


def is_held_out_class(word: str) -> bool:
    """Tell whether a name is kept out of training: a hash of the word, the same in every set."""
    return _hash("class", word) % _HELD_OUT_ONE_IN == 0


def is_popular(word: str) -> bool:
    """Tell whether a name is one of those that scenes show several times as often."""
    return _hash("popular", word) % _POPULAR_ONE_IN == 0


def names_of(split: Split, names: tuple[Name, ...]) -> tuple[Name, ...]:
    """The names that a split may show or ask for."""
    return tuple(n for n in names if is_held_out_class(n.word) == split.held_out_classes)


def _hash(purpose: str, word: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{word}".encode()).digest()[:4])
