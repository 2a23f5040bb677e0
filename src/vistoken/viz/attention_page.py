"""Attention per answer token as one HTML file that loads nothing from elsewhere.

Tokens of the answer are buttons: hover, click, or step with the arrow keys.
"""

from __future__ import annotations

import base64
import io
import json
from html import escape
from typing import Any

from PIL import Image

from vistoken.core.tables import TOKEN, TokenKind, rectangles
from vistoken.viz.filling import fill, read_asset
from vistoken.viz.heat import EVEN, STOPS, drawn_size
from vistoken.viz.looking import Look
from vistoken.viz.views import LONGEST

_DIGITS = 4


def look_page(look: Look, title: str) -> str:
    """An answer's attention as HTML.

    Args:
        look: What the model attended to.
        title: Heading.
    """
    height, width = drawn_size((look.picture.height, look.picture.width))
    words = "".join(
        f'<button type="button" class="word" data-step="{number}">{_shown(word)}</button>'
        for number, word in enumerate(look.words)
    )
    values = {
        "TITLE": escape(title),
        "STYLE": read_asset("attention.css"),
        "QUESTION": escape(look.question),
        "OF": escape(look.of),
        "WORDS": words,
        "SOURCE": picture_source(look.picture),
        "HEIGHT": str(height),
        "WIDTH": str(width),
        # a closing tag inside of a text must not end the script
        "DATA": json.dumps(page_data(look), separators=(",", ":")).replace("</", "<\\/"),
        "SCRIPT": read_asset("attention.js"),
    }
    return fill("attention.html", values)


def page_data(look: Look) -> dict[str, Any]:
    """What the page's script draws: rectangles, weights, shares."""
    placed = look.placed
    return {
        "size": [look.picture.height, look.picture.width],
        "boxes": [[round(edge, 2) for edge in box] for box in rectangles(look.tokens).tolist()],
        "drawn": placed.long().tolist(),
        "names": _names(look),
        "weights": [[float(f"{w:.{_DIGITS}g}") for w in row] for row in look.weights.tolist()],
        "shares": [
            {name: round(value, 5) for name, value in row.items() if value} for row in look.shares
        ],
        "layers": list(look.layers),
        "byLayer": [[round(w, 5) for w in row] for row in look.by_layer.T.tolist()],
        "even": EVEN,
        "stops": [[place, *rgba] for place, rgba in STOPS],
    }


def picture_source(picture: Image.Image, longest: int = LONGEST) -> str:
    """A picture as a data URL, no larger than it is drawn."""
    height, width = drawn_size((picture.height, picture.width), longest)
    buffer = io.BytesIO()
    picture.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _names(look: Look) -> list[str]:
    """What each token is called; only what is not drawn on the picture needs a name of its own."""
    kinds = [TokenKind(kind) for kind in TOKEN.get(look.tokens, "kind").tolist()]
    rows = zip(
        kinds,
        TOKEN.get(look.tokens, "row").tolist(),
        TOKEN.get(look.tokens, "col").tolist(),
        TOKEN.get(look.tokens, "view").tolist(),
        strict=True,
    )
    names: list[str] = []
    spatial = 0
    for kind, row, col, view in rows:
        if kind is TokenKind.SPATIAL:
            spatial += 1
            names.append(f"S{spatial}")
        else:
            where = f" row {row}, col {col}" if row >= 0 else ""
            names.append(f"{kind.name.lower()}{where}, view {view + 1}")
    return names


def _shown(word: str) -> str:
    clean = "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in word)
    return escape(clean.strip()) or "&middot;"
