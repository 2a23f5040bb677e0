"""Offline drawings: coloured shapes, letters and digits, drawn with Pillow alone."""

from __future__ import annotations

import math

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from vistoken.data.scenes.names import Name
from vistoken.data.scenes.sources import Credit

_CANVAS_PX = 168
_MARGIN_PX = 6
_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 214, 50),
    "green": (40, 150, 70),
    "blue": (38, 92, 214),
    "purple": (128, 60, 170),
    "pink": (246, 130, 180),
    "black": (24, 24, 24),
}
_SHAPES = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "hexagon",
    "cross",
    "ring",
    "heart",
    "arrow",
)
_GLYPHS = {"letter": "ABEFHKMRSTXZ", "digit": "2345789"}
# Glyph drawings have no colour in their name; a dark ink shows on every background.
_INK = (30, 30, 40)


class ShapeSource:
    """Coloured shapes and glyphs in four styles; needs no network (see `DrawingSource`)."""

    title = "shapes"
    may_mirror = False

    def __init__(self) -> None:
        self.names = _names()
        self.confusable: dict[str, frozenset[str]] = {}
        self.train_styles: tuple[str, ...] = ("flat", "outlined", "shaded")
        self.held_out_styles: tuple[str, ...] = ("striped",)
        drawn_here = Credit("vistoken shapes", "vistoken", "Apache-2.0", "drawn by vistoken")
        self.credits: dict[str, Credit] = dict.fromkeys(
            (*self.train_styles, *self.held_out_styles), drawn_here
        )

    def drawing(self, name: Name, style: str) -> Image.Image:
        """Draw a shape or glyph (RGBA), cropped to its visible part."""
        colour, shape = name.drawing.split(":")
        if colour in _GLYPHS:
            ink, mask = _INK, _glyph_mask(shape)
        else:
            ink, mask = _COLOURS[colour], _shape_mask(shape)
        picture = _fill(ink, style)
        picture.putalpha(mask)
        if style == "outlined":
            picture = _with_outline(picture)
        return picture.crop(picture.getchannel("A").getbbox())

    def background_clashes(self, name: Name, colour: str) -> bool:
        """A red circle vanishes on red, and orange, pink or brown come close to some colours."""
        own = name.drawing.split(":")[0]
        near = {"red": {"pink", "orange", "brown"}, "orange": {"red", "yellow", "brown"}}
        near |= {"yellow": {"orange"}, "pink": {"red", "purple"}, "purple": {"pink", "blue"}}
        near |= {"blue": {"purple"}, "black": {"gray"}}
        near |= {kind: {"purple", "brown", "blue"} for kind in _GLYPHS}
        return colour == own or colour in near.get(own, set())


def _names() -> tuple[Name, ...]:
    shapes = [
        Name(f"{colour} {shape}", f"{colour}:{shape}", shape)
        for colour in _COLOURS
        for shape in _SHAPES
    ]
    glyphs = [
        Name(f"{kind} {glyph.lower()}", f"{kind}:{glyph}", kind, takes_article=False)
        for kind, text in _GLYPHS.items()
        for glyph in text
    ]
    return (*shapes, *glyphs)


def _fill(ink: tuple[int, int, int], style: str) -> Image.Image:
    size = (_CANVAS_PX, _CANVAS_PX)
    plain = Image.new("RGB", size, ink)
    if style == "shaded":
        light = Image.linear_gradient("L").resize(size).point(lambda value: 255 - value // 3)
        return ImageChops.multiply(plain, Image.merge("RGB", (light, light, light)))
    if style == "striped":
        light = Image.new("L", size, 255)
        draw = ImageDraw.Draw(light)
        for offset in range(-_CANVAS_PX, _CANVAS_PX, 20):
            draw.line((offset, 0, offset + _CANVAS_PX, _CANVAS_PX), fill=190, width=8)
        return ImageChops.multiply(plain, Image.merge("RGB", (light, light, light)))
    return plain


def _with_outline(picture: Image.Image) -> Image.Image:
    grown = picture.getchannel("A").filter(ImageFilter.MaxFilter(9))
    outlined = Image.new("RGBA", picture.size, (250, 250, 250, 255))
    outlined.putalpha(grown)
    outlined.alpha_composite(picture)
    return outlined


def _glyph_mask(glyph: str) -> Image.Image:
    mask = Image.new("L", (_CANVAS_PX, _CANVAS_PX), 0)
    middle = _CANVAS_PX // 2
    font = ImageFont.load_default(_CANVAS_PX - 4 * _MARGIN_PX)
    ImageDraw.Draw(mask).text((middle, middle), glyph, fill=255, font=font, anchor="mm")
    return mask


def _shape_mask(shape: str) -> Image.Image:
    mask = Image.new("L", (_CANVAS_PX, _CANVAS_PX), 0)
    draw = ImageDraw.Draw(mask)
    low, high = 2 * _MARGIN_PX, _CANVAS_PX - 2 * _MARGIN_PX
    middle, side = _CANVAS_PX / 2, high - low
    if shape in ("circle", "ring"):
        draw.ellipse((low, low, high, high), fill=255)
        if shape == "ring":
            inset = side * 0.24
            draw.ellipse((low + inset, low + inset, high - inset, high - inset), fill=0)
    elif shape == "cross":
        third = side / 3
        draw.rectangle((low + third, low, high - third, high), fill=255)
        draw.rectangle((low, low + third, high, high - third), fill=255)
    elif shape == "heart":
        draw.ellipse((low, low, middle + 4, middle + 16), fill=255)
        draw.ellipse((middle - 4, low, high, middle + 16), fill=255)
        draw.polygon(
            [(low + 8, middle), (middle, middle - 20), (high - 8, middle), (middle, high)],
            fill=255,
        )
    else:
        draw.polygon([(low + x * side, low + y * side) for x, y in _corners(shape)], fill=255)
    return mask


def _corners(shape: str) -> list[tuple[float, float]]:
    """List a polygon's corners as (x, y) in the unit square."""
    if shape == "square":
        return [(0, 0), (1, 0), (1, 1), (0, 1)]
    if shape == "triangle":
        return [(0.5, 0), (1, 1), (0, 1)]
    if shape == "diamond":
        return [(0.5, 0), (0.85, 0.5), (0.5, 1), (0.15, 0.5)]
    if shape == "arrow":
        return [(0, 0.3), (0.5, 0.3), (0.5, 0), (1, 0.5), (0.5, 1), (0.5, 0.7), (0, 0.7)]
    if shape == "hexagon":
        return [_on_circle(step / 6, 0.5) for step in range(6)]
    return [_on_circle(step / 10 - 0.25, 0.5 if step % 2 == 0 else 0.22) for step in range(10)]


def _on_circle(turn: float, radius: float) -> tuple[float, float]:
    angle = 2 * math.pi * turn
    return 0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)
