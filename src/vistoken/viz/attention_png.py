"""Attention per answer token as one PNG: a panel for the whole answer, then one for each token."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont

from vistoken.viz.heat import brightest, colour, density, drawn_size, overlay
from vistoken.viz.looking import Look

PANEL = 260
"""Longest side in pixels of one panel's picture."""

MOST = 23
"""Answer tokens that are drawn; the HTML file steps through all of them."""

_INK, _PAPER, _FAINT = "#1c2430", "#ffffff", "#667085"
_MARGIN, _HEAD, _BAR, _GAP, _COLUMNS = 16, 24, 14, 3, 4


def draw_look(look: Look, most: int = MOST) -> Image.Image:
    """Draw an answer's attention.

    Each panel has its own scale; the share of all weight that the drawn tokens got stands in its
    heading, spatial tokens are bars beside the picture in the same scale as each other.

    Args:
        look: What the model attended to.
        most: Answer tokens to draw at most.
    """
    height, width = drawn_size((look.picture.height, look.picture.width), PANEL)
    small = look.picture.resize((width, height), Image.Resampling.BICUBIC)
    placed, spatial = look.placed, look.spatial
    count = min(len(look.words), most)
    heats = density(look.tokens[placed], look.weights[:, placed],
                    (look.picture.height, look.picture.width))  # fmt: skip
    bars = int(spatial.sum())
    beside = (bars * (_BAR + _GAP) + 2 * _GAP) if bars else 0
    cell_w, cell_h = max(width + beside, 150) + _MARGIN, height + _HEAD + _MARGIN
    columns = min(_COLUMNS, count + 1)
    rows = -(-(count + 1) // columns)
    canvas = Image.new(
        "RGB", (columns * cell_w + _MARGIN, rows * cell_h + _MARGIN + 2 * _HEAD), _PAPER
    )
    draw = ImageDraw.Draw(canvas)
    _heading(draw, look, count, canvas.width)
    weights = look.weights[:, spatial]
    for number in range(count + 1):
        first = number == 0
        heat = heats.mean(0) if first else heats[number - 1]
        own = weights.mean(0) if first else weights[number - 1]
        share = _mean_share(look) if first else look.shares[number - 1]["picture"]
        left = _MARGIN + (number % columns) * cell_w
        top = _MARGIN + 2 * _HEAD + (number // columns) * cell_h
        name = "whole answer" if first else f"{number}. {_shown(look.words[number - 1])}"
        _fitted(draw, (left, top), name, f"{share:.1%}", cell_w - _MARGIN)
        canvas.paste(overlay(small, heat, brightest(heat)), (left, top + _HEAD))
        if bars:
            _bars(draw, own.tolist(), (top + _HEAD, left + width + 2 * _GAP), height)
    return canvas


def _heading(draw: ImageDraw.ImageDraw, look: Look, count: int, width: int) -> None:
    rest = len(look.words) - count
    more = f"; {rest} further tokens are not drawn" if rest else ""
    text = f"{look.question}  |  {look.of}; % of weight on the picture{more}"
    draw.text((_MARGIN, _MARGIN), _cut(draw, text, width - 2 * _MARGIN, 14), _INK, _font(14))


def _bars(draw: ImageDraw.ImageDraw, values: list[float], at: tuple[int, int], height: int) -> None:
    """Spatial tokens as upright bars, the largest full height."""
    top, left = at
    largest = max(max(values), 1e-12)
    for number, value in enumerate(values):
        x = left + number * (_BAR + _GAP)
        usable = height - 14
        full = round(usable * value / largest)
        draw.rectangle((x, top, x + _BAR - 1, top + usable - 1), outline="#d0d5dd")
        rgb = tuple(int(c) for c in colour(torch.tensor(0.25 + 0.5 * value / largest))[:3])
        draw.rectangle((x, top + usable - max(full, 1), x + _BAR - 1, top + usable - 1), fill=rgb)
        draw.text((x + _BAR / 2, top + height), f"S{number + 1}", _FAINT, _font(8), anchor="ms")


def _mean_share(look: Look) -> float:
    return sum(row["picture"] for row in look.shares) / len(look.shares)


def _shown(word: str) -> str:
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in word) or "(no text)"


def _fitted(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], name: str, value: str, width: int
) -> None:
    left, top = at
    room = width - draw.textlength(value, _font(12)) - 8
    draw.text((left, top + 2), _cut(draw, name, room, 14), _INK, _font(14))
    draw.text((left + width, top + 4), value, _FAINT, _font(12), anchor="ra")


def _cut(draw: ImageDraw.ImageDraw, text: str, width: float, size: int) -> str:
    if draw.textlength(text, _font(size)) <= width:
        return text
    while text and draw.textlength(text + "…", _font(size)) > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
