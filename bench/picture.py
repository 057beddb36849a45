"""The figures as a picture: CPU time beside nginx, and how far the goal is."""

from collections.abc import Iterator
from html import escape
from statistics import median
from typing import Any

from figures import short

GROUPS = {
    "CPU time per request, in microseconds": ("json", "json over TLS", "stream", "stream over TLS"),
    "CPU time per event of a paced stream, in microseconds": ("paced", "paced over TLS"),
}
WIDTH = 860
LEFT = 150
RIGHT = 110
BAR = 15
ROW = 50
TITLE = 34

STYLE = """
    .page { fill: #ffffff; stroke: #d5d9e0 }
    .nginx { fill: #a9b4c4 }
    .faregate { fill: #3b6fd4 }
    .spread { stroke: #1c2230; stroke-width: 1.2 }
    .goal { stroke: #c2571a; stroke-width: 1.6; stroke-dasharray: 4 3 }
    text { fill: #1c2230; font-size: 13px }
    .name { font-weight: 600; text-anchor: end }
    .title { font-weight: 600; font-size: 14px }
    .note { fill: #4a5365; font-size: 12px }
    @media (prefers-color-scheme: dark) {
      .page { fill: #14171d; stroke: #343b48 }
      .nginx { fill: #5d6a7e }
      .faregate { fill: #6f9bf0 }
      .spread { stroke: #edf0f6 }
      .goal { stroke: #f0a06c }
      text { fill: #edf0f6 }
      .note { fill: #b4bccb }
    }"""


def has_any(rows: dict[str, Any]) -> bool:
    """Whether there is anything to draw."""
    return any(_has(name) for name in rows)


def draw(rows: dict[str, Any]) -> str:
    """An SVG of those of the rows that have bars: as `Figures.keep` returns them."""
    parts: list[str] = []
    y = 66
    for title, names in GROUPS.items():
        there = [name for name in names if name in rows]
        if not there:
            continue
        parts.append(f'  <text class="title" x="24" y="{y}">{title}</text>')
        y += 14
        longest = max(max(_end(rows[name]), *rows[name]["faregate"]) for name in there)
        for name in there:
            parts += _bars(name, rows[name], y, (WIDTH - LEFT - RIGHT) / longest)
            y += ROW
        y += TITLE
    height = y - 4
    about = "; ".join(f"{name} {short(row['ratio']['median'])} times nginx" for name, row in rows.items() if _has(name))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            'aria-labelledby="title about"',
            "     font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif\">",
            '  <title id="title">What Faregate costs beside nginx</title>',
            f'  <desc id="about">CPU time, median of the runs: {escape(about)}.</desc>',
            f"  <style>{STYLE}\n  </style>",
            f'  <rect class="page" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10"/>',
            *_legend(),
            *parts,
            _machine(rows, height),
            "</svg>",
            "",
        ]
    )


def _bars(name: str, row: dict[str, Any], top: int, scale: float) -> Iterator[str]:
    yield f'  <text class="name" x="{LEFT - 12}" y="{top + BAR + 5}">{escape(name)}</text>'
    for place, who in enumerate(("beside", "faregate")):
        figures = row[who]
        y = top + place * (BAR + 3)
        width = median(figures) * scale
        middle = y + BAR / 2
        least, most = LEFT + min(figures) * scale, LEFT + max(figures) * scale
        ratio = f" ({short(row['ratio']['median'])}x)" if who == "faregate" else ""
        yield (
            f'  <rect class="{"nginx" if who == "beside" else who}" x="{LEFT}" y="{y}" width="{width:.1f}" '
            f'height="{BAR}" rx="2"/>'
        )
        yield f'  <path class="spread" d="M{least:.1f} {middle} H{most:.1f}"/>'
        yield f'  <text x="{max(most, LEFT + width) + 8:.1f}" y="{middle + 4.5}">{short(median(figures))}{ratio}</text>'
    goal = LEFT + _end(row) * scale
    yield f'  <path class="goal" d="M{goal:.1f} {top - 3} V{top + 2 * BAR + 6}"/>'


def _end(row: dict[str, Any]) -> float:
    """Where the goal is, in the unit of the row."""
    return float(median(row["beside"]) * row["most"])


def _legend() -> Iterator[str]:
    yield '  <rect class="faregate" x="24" y="20" width="14" height="14" rx="2"/>'
    yield '  <text x="44" y="32">Faregate, everything on</text>'
    yield '  <rect class="nginx" x="214" y="20" width="14" height="14" rx="2"/>'
    yield '  <text x="234" y="32">nginx proxy_pass, nothing else</text>'
    yield '  <path class="goal" d="M452 18 V36"/>'
    yield '  <text x="462" y="32">goal: as many times nginx in the same run</text>'


def _machine(rows: dict[str, Any], height: int) -> str:
    machine = next(rows[name]["machine"] for name in rows if _has(name))
    text = f"{machine['processor']}, {machine['cores']} cores, shared with load, upstream, Redis and PostgreSQL"
    return f'  <text class="note" x="24" y="{height - 16}">{escape(text)}. Less is better.</text>'


def _has(name: str) -> bool:
    return any(name in names for names in GROUPS.values())
