"""Draws figures as an SVG bar chart, which follows the light or dark colour scheme of its page."""

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape

WIDTH, LABELS, ROW, GAP, TOP = 760, 110, 18, 16, 84
COLOURS = ("#8a8f98", "#2f6feb", "#1a9e77", "#d9772b")

_STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .title { font-size: 16px; font-weight: 600 }
    .value { font-size: 12px }
    .ground { fill: #ffffff }
    @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .ground { fill: #0d1117 } }
"""


def bar_chart(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Return horizontal bars, a group of them per key, each series in its colour."""
    series = dict(zip(next(iter(groups.values())), COLOURS, strict=False))
    highest = max(value for group in groups.values() for value in group.values())
    height = TOP + len(groups) * (len(series) * ROW + GAP)
    scale = (WIDTH - LABELS - 60) / highest
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
        _text(16, 30, title, "title"),
        *_legend(series),
    ]
    top = TOP
    for name, group in groups.items():
        lines.append(_text(16, top + (len(group) * ROW) / 2 + 4, name))
        for row, (label, value) in enumerate(group.items()):
            y = top + row * ROW
            width = value * scale
            lines.append(
                f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{ROW - 3}" fill="{series[label]}"/>'
            )
            lines.append(_text(LABELS + width + 6, y + ROW - 6, f"{value:.1f}", "value"))
        top += len(group) * ROW + GAP
    return "\n".join([*lines, "</svg>", ""])


def _legend(series: Mapping[str, str]) -> Iterator[str]:
    x = 16
    for label, colour in series.items():
        yield f'<rect x="{x}" y="48" width="12" height="12" rx="2" fill="{colour}"/>'
        yield _text(x + 18, 59, label)
        x += 40 + 7 * len(label)


def _text(x: float, y: float, text: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
