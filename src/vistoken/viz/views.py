"""Which part of a picture each encoder input shows, as a drawing: lines, order, token counts.

views = describe_views(processor.view_table(h, w), processor.token_map(h, w))
draw_views(image, views).save("views.png")
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vistoken.core.tables import TOKEN, VIEW, ViewKind, to_original

Box = tuple[float, float, float, float]

LONGEST = 560
"""Longest side in pixels of one panel's picture."""

COLOURS = {
    ViewKind.GLOBAL: "#d9480f",
    ViewKind.TILE: "#1864ab",
    ViewKind.SLICE: "#1864ab",
    ViewKind.STRIDED: "#5f3dc4",
    ViewKind.CROP: "#2b8a3e",
}
_OTHER = "#2b8a3e"
_INK, _PAPER = "#1c2430", "#ffffff"
_MARGIN, _TITLE, _SMALLEST = 16, 26, 48


@dataclass(frozen=True)
class ShownView:
    """One encoder input on the picture.

    Args:
        order: Its number, from 1, among the inputs that may yield tokens.
        kind: What it shows.
        group: Its tiling.
        cell: (row, col, rows, cols) on the tiling.
        box: (top, left, bottom, right) of what it shows, in pixels of the picture.
        size: (height, width) given to the encoder.
        tokens: Tokens that the language model gets from it.
    """

    order: int
    kind: ViewKind
    group: int
    cell: tuple[int, int, int, int]
    box: Box
    size: tuple[int, int]
    tokens: int


@dataclass(frozen=True)
class Panel:
    """All views of one tiling and kind, drawn on one copy of the picture."""

    title: str
    kind: ViewKind
    views: tuple[ShownView, ...]

    @property
    def colour(self) -> str:
        """Colour of its lines."""
        return COLOURS.get(self.kind, _OTHER)


def describe_views(view_table: Tensor, token_map: Tensor) -> list[ShownView]:
    """Read the views of one medium from its tables.

    Args:
        view_table (Tensor): (V, K) int64; rows of further towers, which show the same, are left
            out.
        token_map (Tensor): (N, K) int64, the medium's tokens.
    """
    rows = view_table[VIEW.get(view_table, "tower") == 0]
    valid = torch.stack([VIEW.get(rows, side) for side in ("top", "left", "bottom", "right")], -1)
    boxes = to_original(rows, valid).tolist()
    owners = TOKEN.get(token_map, "view")
    shown = []
    for order, (row, box) in enumerate(zip(VIEW.rows(rows), boxes, strict=True), start=1):
        value = {name: int(row[name]) for name in ("group", "row", "col", "rows", "cols")}
        shown.append(
            ShownView(
                order=order,
                kind=ViewKind(int(row["kind"])),
                group=value["group"],
                cell=(value["row"], value["col"], value["rows"], value["cols"]),
                box=_inside(box, int(row["orig_height"]), int(row["orig_width"])),
                size=(int(row["height"]), int(row["width"])),
                tokens=int((owners == int(row["index"])).sum()),
            )
        )
    return shown


def make_panels(views: list[ShownView]) -> list[Panel]:
    """Group views by tiling and kind, in order of appearance."""
    groups: dict[tuple[int, ViewKind], list[ShownView]] = {}
    for view in views:
        groups.setdefault((view.group, view.kind), []).append(view)
    return [_panel(kind, tuple(members)) for (_, kind), members in groups.items()]


def draw_views(image: Image.Image, views: list[ShownView]) -> Image.Image:
    """Draw every tiling on its own copy of the picture.

    Args:
        image: The original, RGB.
        views: What :func:`describe_views` gave for it.

    Returns:
        RGB; panels in one row, up to three, then further rows.
    """
    panels = make_panels(views)
    scale = LONGEST / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    small = image.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    cell_w = max(size[0], 5 * _SMALLEST) + _MARGIN
    cell_h = max(size[1], _SMALLEST) + _TITLE + _MARGIN
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    canvas = Image.new("RGB", (columns * cell_w + _MARGIN, rows * cell_h + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, panel in enumerate(panels):
        left = _MARGIN + (number % columns) * cell_w
        top = _MARGIN + (number // columns) * cell_h
        draw.text((left, top), panel.title, fill=_INK, font=_font(14))
        canvas.paste(small, (left, top + _TITLE))
        _draw_panel(draw, panel, scale, (top + _TITLE, left), size)
    return canvas


def label_box(view: ShownView, height: float, width: float) -> Box:
    """Where a view's label stands, in pixels of the picture.

    Strided views all show the whole scene: their labels stand on a grid over it.
    """
    if view.kind is not ViewKind.STRIDED:
        return view.box
    row, col, rows, cols = view.cell
    return (
        row * height / rows,
        col * width / cols,
        (row + 1) * height / rows,
        (col + 1) * width / cols,
    )


def token_words(count: int) -> str:
    """A token count in words."""
    return "no tokens" if count == 0 else f"{count} token{'s' if count > 1 else ''}"


def _panel(kind: ViewKind, views: tuple[ShownView, ...]) -> Panel:
    rows, cols = views[0].cell[2:]
    name = {ViewKind.GLOBAL: "whole picture"}.get(kind, f"{rows} x {cols} {kind.name.lower()}")
    plural = "" if kind is ViewKind.GLOBAL else "s" if kind is not ViewKind.STRIDED else " views"
    total = token_words(sum(view.tokens for view in views))
    return Panel(f"{name}{plural}: {total}", kind, views)


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    scale: float,
    origin: tuple[int, int],
    size: tuple[int, int],
) -> None:
    top, left = origin
    original = (size[1] / scale, size[0] / scale)
    for view in panel.views:
        y0, x0, y1, x1 = (edge * scale for edge in view.box)
        corners = (left + x0, top + y0, left + max(x1, x0 + 2) - 1, top + max(y1, y0 + 2) - 1)
        draw.rectangle(corners, outline=_PAPER, width=4)
        draw.rectangle(corners, outline=panel.colour, width=2)
    for view in panel.views:
        y0, x0, y1, x1 = (edge * scale for edge in label_box(view, *original))
        _draw_label(draw, view, panel.colour, (top + y0, left + x0, top + y1, left + x1))


def _draw_label(draw: ImageDraw.ImageDraw, view: ShownView, colour: str, box: Box) -> None:
    """Number, and token count where it fits, in the middle of a box."""
    top, left, bottom, right = box
    middle = ((left + right) / 2, (top + bottom) / 2)
    text, font = f"{view.order}\n{token_words(view.tokens)}", _font(15)
    if right - left < draw.textbbox((0, 0), text, font)[2] + 10 or bottom - top < 44:
        text = f"{view.order} ({view.tokens})" if right - left > 70 else str(view.order)
        font = _font(11)
    x0, y0, x1, y1 = draw.textbbox(middle, text, font, anchor="mm", align="center")
    draw.rounded_rectangle((x0 - 5, y0 - 4, x1 + 5, y1 + 4), 5, fill=_PAPER, outline=colour)
    draw.text(middle, text, fill=_INK, font=font, anchor="mm", align="center")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _inside(box: list[float], height: int, width: int) -> Box:
    """A box cut to the picture."""
    top, left, bottom, right = box
    return (
        min(max(top, 0.0), float(height)),
        min(max(left, 0.0), float(width)),
        min(max(bottom, 0.0), float(height)),
        min(max(right, 0.0), float(width)),
    )
