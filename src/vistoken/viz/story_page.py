"""Which encoder cells became tokens, as one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from html import escape

from PIL import Image
from torch import Tensor

from vistoken.core.tables import TOKEN, TokenKind, rectangles
from vistoken.viz.attention_page import picture_source
from vistoken.viz.fates import Fate, Panel, TokenStory, panels
from vistoken.viz.filling import fill, read_asset
from vistoken.viz.heat import drawn_size
from vistoken.viz.looking import placed_tokens
from vistoken.viz.story_png import COLOURS


def story_page(picture: Image.Image, story: TokenStory, title: str) -> str:
    """What became of a picture's encoder cells, as HTML.

    Where the model was run, a slider goes through the decoder's layers.

    Args:
        picture: The original, RGB.
        story: What :func:`~vistoken.viz.fates.tell_story` gave for it.
        title: Heading.
    """
    source = picture_source(picture)
    size = drawn_size((picture.height, picture.width))
    states = _states(story)
    figures = "".join(_figure(panel, story, source, size, states) for panel in panels(story))
    values = {
        "TITLE": escape(title),
        "STYLE": read_asset("tokens.css") + _colours(),
        "LEGEND": _legend(story),
        "FIGURES": figures,
        "UNPLACED": _unplaced(story, states),
        "LAYERS": _layers(story),
        "SCRIPT": read_asset("tokens.js"),
    }
    return fill("tokens.html", values)


def _states(story: TokenStory) -> list[str]:
    """For each token, a digit per layer: 2 full, 1 keys only, 0 gone."""
    return [
        "".join(str(int(row.states[number])) for row in story.rows)
        for number in range(len(story.tokens))
    ]


def _figure(
    panel: Panel, story: TokenStory, source: str, size: tuple[int, int], states: list[str]
) -> str:
    height, width = size
    scale = height / story.size[0], width / story.size[1]
    numbers = _numbers(story, panel)
    lines = [
        f"<figure><figcaption>{escape(panel.title)}</figcaption>",
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(panel.title)}">',
        f'<image href="{source}" width="{width}" height="{height}"/>',
    ]
    for box, fate in zip(rectangles(panel.cells).tolist(), panel.fates.tolist(), strict=True):
        name = Fate(fate).name.lower()
        lines.append(_rect(box, scale, f"cell {name}", f"cell: {name}"))
    for number, box in zip(numbers, rectangles(panel.tokens).tolist(), strict=True):
        name = f"token {number}: {_name(story.tokens[number])}"
        lines.append(_rect(box, scale, "token", name, f' data-layers="{states[number]}"'))
    return "\n".join([*lines, "</svg></figure>"])


def _numbers(story: TokenStory, panel: Panel) -> list[int]:
    """Numbers of a panel's tokens among all tokens."""
    if len(panel.tokens) == 0:
        return []
    group = TOKEN.get(panel.tokens, "group")[0]
    own = placed_tokens(story.tokens, story.size) & (TOKEN.get(story.tokens, "group") == group)
    return [number for number, wanted in enumerate(own.tolist()) if wanted]


def _rect(
    box: list[float], scale: tuple[float, float], kind: str, name: str, more: str = ""
) -> str:
    top, left, bottom, right = box
    y, x = top * scale[0], left * scale[1]
    high, wide = (bottom - top) * scale[0], (right - left) * scale[1]
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(wide, 1):.1f}" '
        f'height="{max(high, 1):.1f}"{more}><title>{escape(name)}</title></rect>'
    )


def _name(token: Tensor) -> str:
    kind = TokenKind(int(TOKEN.get(token, "kind"))).name.lower()
    row, col = int(TOKEN.get(token, "row")), int(TOKEN.get(token, "col"))
    where = f", row {row}, col {col}" if row >= 0 else ""
    return f"{kind}{where}, view {int(TOKEN.get(token, 'view')) + 1}"


def _unplaced(story: TokenStory, states: list[str]) -> str:
    """Tokens without a place on the picture, as chips."""
    rest = [
        n for n, placed in enumerate(placed_tokens(story.tokens, story.size).tolist()) if not placed
    ]
    if not rest:
        return ""
    chips = "".join(
        f'<li class="chip" data-layers="{states[n]}">{escape(_name(story.tokens[n]))}</li>'
        for n in rest
    )
    return f"<h2>Tokens without a place of their own</h2><ul>{chips}</ul>"


def _legend(story: TokenStory) -> str:
    cells = "".join(
        f'<li><i class="{name}"></i>{count} {name}</li>'
        for name, count in story.counts().items()
        if count
    )
    kinds = ", ".join(f"{count} {name}" for name, count in story.kinds().items())
    return (
        f'<ul class="legend"><li>{len(story.cells)} encoder cells:</li>{cells}</ul>'
        f"<p>{len(story.tokens)} tokens for the language model: {escape(kinds)}.</p>"
    )


def _layers(story: TokenStory) -> str:
    if not story.rows:
        return ""
    rows = "".join(
        f"<tr><td>{row.layer}</td>"
        + "".join(f"<td>{count}</td>" for count in row.counts().values())
        + "</tr>"
        for row in story.rows
    )
    return (
        '<div id="player"><label for="layer">Decoder layer</label>'
        f'<input id="layer" type="range" min="0" max="{len(story.rows) - 1}" value="0">'
        '<output id="told" for="layer"></output></div>'
        "<details><summary>All layers</summary><table><tr><th>layer</th><th>full</th>"
        f"<th>keys only</th><th>gone</th></tr>{rows}</table></details>"
    )


def _colours() -> str:
    return "".join(
        f".{fate.name.lower()} {{ --tint: rgb({r} {g} {b}); }}\n"
        for fate, (r, g, b) in COLOURS.items()
    )
