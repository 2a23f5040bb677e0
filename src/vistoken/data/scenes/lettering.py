"""A short word painted on a scene, for reading questions."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw, ImageFont

_WORD_LIST = (
    "able back bake band best blue bold bond bring calm care cash chat city clean close club come "
    "cook cool dance dark dawn deal dear deep dream drive early east easy echo edge enter even "
    "every exit fair fast find fine first five flow fold free fresh full gain game give glad gold "
    "good grand great green grow half happy hard hello help here high hold home hope hour idea "
    "join jump just keep kind know large last late learn left life light line list live long look "
    "love luck main make many march meet mind more morning move much near neat never new next nice "
    "night north note often old only open over park part past peace plan play plus pull push quick "
    "quiet rain ready real red rest rich right road room round run safe sale same save seek seven "
    "shine shop show sing sky sleep slow small smile soft song soon south speed spring start stay "
    "still stop story street strong summer sure sweet swim take talk team tell thank think time "
    "today top touch town travel true try turn under very visit wait wake walk warm wash welcome "
    "west wide wild win wind winter wish wonder word work world write yes yellow you young zero"
)
WORDS = tuple(_WORD_LIST.split())

_PLATE_COLOURS = ((255, 255, 255), (25, 25, 25), (250, 240, 200), (30, 60, 110), (120, 20, 30))


def lettering(word: str, size_px: int, rng: random.Random) -> Image.Image:
    """Paint a word on a plate.

    Args:
        word: What is written.
        size_px: Height and width of the scene, which the letters are scaled to.
        rng: Chooses size, case and colours.

    Returns:
        RGBA plate, opaque.
    """
    shown = rng.choice((word, word.upper(), word.capitalize()))
    font = ImageFont.load_default(round(size_px * rng.uniform(0.085, 0.12)))
    plate_colour = rng.choice(_PLATE_COLOURS)
    ink = (20, 20, 20) if sum(plate_colour) > 380 else (250, 250, 250)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(shown))
    margin = max(3, size_px // 56)
    plate = Image.new(
        "RGBA", (right - left + 2 * margin, bottom - top + 2 * margin), (*plate_colour, 255)
    )
    ImageDraw.Draw(plate).text((margin - left, margin - top), shown, fill=ink, font=font)
    return plate
