"""A study's picture: differences to the baseline with their intervals, one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from vistoken.study.report import excludes_zero, rows_of

_ROW = 22
_LEFT = 150
_PLOT = 360
_RIGHT = 150

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1c2430; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #1c2430; }
.zero { stroke: #8a94a3; } .bar { stroke: #9aa4b2; stroke-width: 3; } .dot { fill: #6b7686; }
.sure .bar { stroke: #2b6cb0; } .sure .dot { fill: #1d4f86; } .note { color: #5a6472; }
.seed { fill: none; stroke: #8a94a3; }
@media (prefers-color-scheme: dark) { body { color: #e6e9ee; background: #14181e; }
  svg text { fill: #e6e9ee; } .sure .bar { stroke: #63a4e8; } .sure .dot { fill: #9cc8f5; } }
"""


def page(report: Mapping[str, Any]) -> str:
    """The picture as HTML; nothing is loaded from elsewhere."""
    cells = report["cells"]
    title = f"{report['study']}, size {report['size']}"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(report['summary'])}</p>",
        f"<p>{escape(report['size_summary'])}</p>" if report["size_summary"] else "",
        f'<p class="note">{cells["finished"]} of {cells["all"]} cells. '
        f"Points are arm minus {escape(report['baseline'])} in percentage points; rings are single "
        "seeds; blue intervals exclude zero. "
        f"{escape(report['interval'])}</p>",
    ]
    tasks = dict.fromkeys(task for arm in report["arms"].values() for task in arm["tasks"])
    for task in tasks:
        parts.append(f"<h2>{escape(task)}</h2>")
        parts += [_plot(report, task, row) for row in rows_of(report, task)]
    return "\n".join(part for part in [*parts, "</body></html>"] if part) + "\n"


def _plot(report: Mapping[str, Any], task: str, row: str) -> str:
    """All arms' differences on one row of questions."""
    found = {
        arm: values["tasks"][task][row]["difference"]
        for arm, values in report["arms"].items()
        if row in values["tasks"].get(task, {}) and values["tasks"][task][row]["difference"]
    }
    if not found:
        return ""
    reach = max(
        max(abs(100 * number) for number in (d["low"], d["high"], *d["seeds"]))
        for d in found.values()
    )
    reach = max(reach, 1.0) * 1.1
    height = _ROW * (len(found) + 1) + 8
    width = _LEFT + _PLOT + _RIGHT
    middle = _LEFT + _PLOT / 2

    def place(share: float) -> float:
        return middle + 100 * share / reach * _PLOT / 2

    label = f"{row}: arm minus {report['baseline']}"
    lines = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">',
        f'<text x="0" y="15" font-weight="bold">{escape(row)}</text>',
        f'<text x="{_LEFT}" y="15">-{reach:.0f}</text>',
        f'<text x="{_LEFT + _PLOT}" y="15" text-anchor="end">+{reach:.0f}</text>',
        f'<line class="zero" x1="{middle}" x2="{middle}" y1="20" y2="{height - 4}"/>',
    ]
    for number, (arm, estimate) in enumerate(found.items(), start=1):
        y = number * _ROW + 10
        low, value, high = (place(estimate[name]) for name in ("low", "value", "high"))
        sure = "sure" if excludes_zero(estimate) else "open"
        lines += [
            f'<g class="{sure}"><text x="0" y="{y + 4}">{escape(arm)}</text>',
            f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>',
            *(
                f'<circle class="seed" cx="{place(s):.1f}" cy="{y}" r="3"/>'
                for s in estimate["seeds"]
            ),
            f'<circle class="dot" cx="{value:.1f}" cy="{y}" r="4"/>',
            f'<text x="{_LEFT + _PLOT + 10}" y="{y + 4}">{100 * estimate["value"]:+.1f} '
            f"[{100 * estimate['low']:+.1f}, {100 * estimate['high']:+.1f}]</text></g>",
        ]
    return "\n".join([*lines, "</svg>"])
