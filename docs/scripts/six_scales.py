"""Draw docs/assets/six-scales.svg: what each spatial token of LLaVA-SP looks at.

    python docs/scripts/six_scales.py

The sizes come from the package, so the picture cannot differ from the code.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from vistoken.systems.llava_sp.config import default_scales

SIDE = 24
CELL = 5
PANEL = SIDE * CELL
GAP = 18
LEFT = 24
COLOURS = ("#0b6e99", "#1f8a70", "#7a9a01", "#d99000", "#d1495b", "#7b3fa0")
OUT = Path(__file__).resolve().parents[1] / "assets" / "six-scales.svg"
DESCRIPTION = (
    "Top row: cropping, windows of 4, 8, 12, 16, 20 and 24 cells in the middle of the feature "
    "grid. Middle row: pooling, the whole grid averaged to 4x4 up to 24x24. Bottom: the order of "
    "the tokens, six spatial ones, then 576 patches."
)


def main() -> None:
    """Write the picture."""
    width = 2 * LEFT + 6 * PANEL + 5 * GAP
    parts = [
        f'<rect width="{width}" height="490" rx="8" fill="#ffffff"/>',
        text(LEFT, 26, "cropping: a window in the middle, one kernel as large as the window", 14),
        text(LEFT, 216, "pooling: the whole grid, averaged to k × k, one k × k kernel", 14),
    ]
    for number, (scale, colour) in enumerate(
        zip(default_scales(SIDE, "cropping"), COLOURS, strict=True)
    ):
        left = LEFT + number * (PANEL + GAP)
        parts += panel(left, 40, crop(scale, colour), f"t{number + 1}: {scale} × {scale} cells")
        label = f"t{number + 1}: {scale} × {scale} averages"
        parts += panel(left, 230, pool(scale, colour), label)
    parts += token_row(width)
    OUT.parent.mkdir(exist_ok=True)
    body = "\n".join(parts)
    OUT.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 490" role="img">\n'
        f"<title>The six scales of LLaVA-SP on a 24 x 24 grid</title>\n<desc>{DESCRIPTION}</desc>\n"
        f"{body}\n</svg>\n",
        encoding="utf-8",
    )


def panel(left: float, top: float, inside: list[str], caption: str) -> list[str]:
    """One small grid with what is drawn on it, and its caption."""
    lines = "".join(f"M{i * CELL} 0V{PANEL}M0 {i * CELL}H{PANEL}" for i in range(1, SIDE))
    return [
        f'<g transform="translate({left} {top})">',
        f'<rect width="{PANEL}" height="{PANEL}" fill="#f3f4f6"/>',
        f'<path d="{lines}" stroke="#d5d9df" stroke-width=".5"/>',
        *inside,
        f'<rect width="{PANEL}" height="{PANEL}" fill="none" stroke="#6b7280"/>',
        text(0, PANEL + 16, caption, 11),
        "</g>",
    ]


def crop(scale: int, colour: str) -> list[str]:
    """The central window of one scale."""
    start = (SIDE - scale) // 2 * CELL
    return [
        f'<rect x="{start}" y="{start}" width="{scale * CELL}" height="{scale * CELL}" '
        f'fill="{colour}" fill-opacity=".55" stroke="{colour}" stroke-width="1.5"/>'
    ]


def pool(scale: int, colour: str) -> list[str]:
    """Pooling windows of one scale; bands that two windows share are darker."""
    windows = [(i * SIDE // scale, -(-(i + 1) * SIDE // scale)) for i in range(scale)]
    edges = sorted({edge * CELL for window in windows for edge in window})
    lines = "".join(f"M{edge} 0V{PANEL}M0 {edge}H{PANEL}" for edge in edges)
    shared = [
        (following[0] * CELL, (previous[1] - following[0]) * CELL)
        for previous, following in pairwise(windows)
        if previous[1] > following[0]
    ]
    bands = [
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{colour}" fill-opacity=".3"/>'
        for start, size in shared
        for x, y, w, h in ((start, 0, size, PANEL), (0, start, PANEL, size))
    ]
    return [
        f'<rect width="{PANEL}" height="{PANEL}" fill="{colour}" fill-opacity=".35"/>',
        *bands,
        f'<path d="{lines}" stroke="{colour}" stroke-width="1"/>',
    ]


def token_row(width: int) -> list[str]:
    """The order in which the language model reads the tokens."""
    top, size = 422, 18
    parts = [text(LEFT, top - 10, "what the language model reads, left to right", 14)]
    for number, colour in enumerate(COLOURS):
        x = LEFT + number * (size + 3)
        parts.append(
            f'<rect x="{x}" y="{top}" width="{size}" height="{size}" rx="3" fill="{colour}"/>'
        )
    start = LEFT + 6 * (size + 3) + 8
    count = (width - LEFT - start) // (size + 3)
    dots = count - 4
    for number in range(count):
        x = start + number * (size + 3)
        if number == dots:
            parts.append(text(x + 3, top + 14, "…", 16))
            continue
        parts.append(
            f'<rect x="{x}" y="{top}" width="{size}" height="{size}" rx="3" fill="#f3f4f6" '
            'stroke="#6b7280"/>'
        )
    parts.append(text(LEFT, top + 40, "6 spatial tokens", 12))
    parts.append(text(start, top + 40, "576 patch tokens, row by row, as in LLaVA-1.5", 12))
    return parts


def text(x: float, y: float, content: str, size: int) -> str:
    """A line of text."""
    return (
        f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{size}" '
        f'fill="#1f2937">{content}</text>'
    )


if __name__ == "__main__":
    main()
