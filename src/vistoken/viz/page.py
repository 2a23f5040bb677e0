"""The drawing of views as one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from vistoken.viz.views import LONGEST, Panel, ShownView, label_box, make_panels, token_words

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  color: #1c2430; background: #fff; }
h1 { font-size: 1.4rem; } figure { display: inline-block; margin: 0 1rem 1rem 0; }
figcaption { font-weight: 600; } svg { max-width: 100%; height: auto; background: #8883; }
svg text { font: 600 14px system-ui, sans-serif; fill: #1c2430; stroke: #fff; stroke-width: 4;
  paint-order: stroke; text-anchor: middle; dominant-baseline: middle; }
rect { fill: transparent; stroke-width: 2; vector-effect: non-scaling-stroke; }
rect:hover { fill: #ffd43b55; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; text-align: right; }
tr:nth-child(even) { background: #8881; }
@media (prefers-color-scheme: dark) { body { color: #e6e9ee; background: #14181e; } }
"""


def views_page(image: Image.Image, views: list[ShownView], title: str) -> str:
    """Views of a picture as HTML: a drawing per tiling, then a table.

    Args:
        image: The original, RGB.
        views: What :func:`~vistoken.viz.views.describe_views` gave for it.
        title: Heading.
    """
    scale = LONGEST / max(image.size)
    size = (max(round(image.height * scale), 1), max(round(image.width * scale), 1))
    source = _encode(image.resize(size[::-1], Image.Resampling.BICUBIC))
    panels = make_panels(views)
    total = token_words(sum(view.tokens for view in views))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{image.height} x {image.width} pixels (height x width), {len(views)} views, "
        f"{total} from them.</p>",
        *(_figure(panel, source, size, scale) for panel in panels),
        _table(views),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _figure(panel: Panel, source: str, size: tuple[int, int], scale: float) -> str:
    height, width = size
    lines = [
        f"<figure><figcaption>{escape(panel.title)}</figcaption>",
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(panel.title)}">',
        f'<image href="{source}" width="{width}" height="{height}"/>',
    ]
    for view in panel.views:
        top, left, bottom, right = (edge * scale for edge in view.box)
        lines.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1):.1f}" '
            f'height="{max(bottom - top, 1):.1f}" stroke="{panel.colour}">'
            f"<title>view {view.order}: {token_words(view.tokens)}</title></rect>"
        )
    for view in panel.views:
        top, left, bottom, right = (
            edge * scale for edge in label_box(view, height / scale, width / scale)
        )
        lines.append(
            f'<text x="{(left + right) / 2:.1f}" y="{(top + bottom) / 2:.1f}">'
            f"{view.order} ({view.tokens})</text>"
        )
    return "\n".join([*lines, "</svg></figure>"])


def _table(views: list[ShownView]) -> str:
    rows = [
        "<table><tr><th>view</th><th>kind</th><th>row</th><th>col</th><th>top</th><th>left</th>"
        "<th>bottom</th><th>right</th><th>encoder</th><th>tokens</th></tr>"
    ]
    for view in views:
        row, col, *_ = view.cell
        box = "".join(f"<td>{edge:.1f}</td>" for edge in view.box)
        rows.append(
            f"<tr><td>{view.order}</td><td>{view.kind.name.lower()}</td><td>{row}</td>"
            f"<td>{col}</td>{box}<td>{view.size[0]} x {view.size[1]}</td>"
            f"<td>{view.tokens}</td></tr>"
        )
    return "\n".join([*rows, "</table>"])


def _encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
