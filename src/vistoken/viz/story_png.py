"""Which encoder cells became tokens, as one PNG: a panel per tiling."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from vistoken.core.tables import rectangles
from vistoken.viz.fates import Fate, Panel, TokenStory, panels
from vistoken.viz.heat import drawn_size

PANEL = 420
"""Longest side in pixels of one panel's picture."""

COLOURS = {
    Fate.KEPT: (43, 138, 62),
    Fate.MERGED: (24, 100, 171),
    Fate.DROPPED: (201, 42, 42),
    Fate.PADDING: (134, 142, 150),
}
_TINT = {Fate.KEPT: 40, Fate.MERGED: 50, Fate.DROPPED: 150, Fate.PADDING: 150}
_INK, _PAPER, _FAINT = "#1c2430", "#ffffff", "#667085"
_MARGIN, _HEAD, _LINE, _LEGEND = 16, 24, 20, 230
_COLUMNS = 3


def draw_story(picture: Image.Image, story: TokenStory, title: str) -> Image.Image:
    """Draw what became of a picture's encoder cells.

    Cells are tinted by their fate, and every token that has a place is outlined; what has none
    (spatial tokens, newlines, separators) is counted beside the picture.

    Args:
        picture: The original, RGB.
        story: What :func:`~vistoken.viz.fates.tell_story` gave for it.
        title: Line above.
    """
    found = panels(story)
    height, width = drawn_size((picture.height, picture.width), PANEL)
    small = picture.resize((width, height), Image.Resampling.BICUBIC)
    columns = min(len(found), _COLUMNS)
    rows = -(-len(found) // columns)
    cell_w, cell_h = max(width, 220) + _MARGIN, height + _HEAD + _MARGIN
    words = _legend(story)
    total_h = max(rows * cell_h, len(words) * _LINE + _MARGIN) + _MARGIN + _HEAD
    canvas = Image.new("RGB", (columns * cell_w + _MARGIN + _LEGEND, total_h), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 4), title, _INK, _font(15))
    for number, panel in enumerate(found):
        left = _MARGIN + (number % columns) * cell_w
        top = _MARGIN + _HEAD + (number // columns) * cell_h
        draw.text((left, top), panel.title, _INK, _font(13))
        canvas.paste(_drawn(small, panel, story.size), (left, top + _HEAD))
    for number, (text, fate) in enumerate(words):
        y = _MARGIN + _HEAD + number * _LINE
        x = columns * cell_w + _MARGIN
        if fate is not None:
            draw.rectangle((x, y + 2, x + 12, y + 14), fill=COLOURS[fate])
        draw.text((x + 20 if fate is not None else x, y), text, _INK, _font(13))
    return canvas


def _drawn(small: Image.Image, panel: Panel, size: tuple[int, int]) -> Image.Image:
    layer = Image.new("RGBA", small.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    scale = small.height / size[0], small.width / size[1]
    for box, fate in zip(rectangles(panel.cells).tolist(), panel.fates.tolist(), strict=True):
        colour = (*COLOURS[Fate(fate)], _TINT[Fate(fate)])
        draw.rectangle(_corners(box, scale), fill=colour)
    for box in rectangles(panel.tokens).tolist():
        draw.rectangle(_corners(box, scale), outline=(255, 255, 255, 190))
    return Image.alpha_composite(small.convert("RGBA"), layer).convert("RGB")


def _corners(box: list[float], scale: tuple[float, float]) -> tuple[float, float, float, float]:
    top, left, bottom, right = box
    y0, x0, y1, x1 = top * scale[0], left * scale[1], bottom * scale[0], right * scale[1]
    return x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)


def _legend(story: TokenStory) -> list[tuple[str, Fate | None]]:
    counts = story.counts()
    words: list[tuple[str, Fate | None]] = [("encoder cells", None)]
    words += [(f"{count} {name}", Fate[name.upper()]) for name, count in counts.items() if count]
    words += [("", None), (f"{len(story.tokens)} tokens", None)]
    words += [(f"{count} {name}", None) for name, count in story.kinds().items()]
    if story.rows:
        words += [("", None), ("in the decoder", None)]
        words += [(text, None) for text in layer_words(story)]
    return words


def layer_words(story: TokenStory) -> list[str]:
    """What visual tokens do, in words: layers that do the same in one line."""
    lines: list[tuple[int, int, str]] = []
    for row in story.rows:
        text = ", ".join(f"{count} {name}" for name, count in row.counts().items() if count)
        if lines and lines[-1][2] == text:
            lines[-1] = (lines[-1][0], row.layer, text)
        else:
            lines.append((row.layer, row.layer, text))
    return [
        f"layer {first}: {text}" if first == last else f"layers {first}-{last}: {text}"
        for first, last, text in lines
    ]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
