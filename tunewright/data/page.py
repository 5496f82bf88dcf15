"""A Report -> one HTML page that needs nothing else: `page`. Pictures are inline SVG, there is no script, and every text of the data is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tunewright.data.formats import Format
from tunewright.data.profile import Reader
from tunewright.data.report import Report, rows
from tunewright.data.tokens import NotRenderable
from tunewright.data.traits import Spread
from tunewright.data.xray import KINDS, Ray, at_line, rays, visible

_WIDTH, _HEIGHT, _LEFT, _BELOW = 640, 180, 46, 34
_XRAYS = 4
_PIECES = 1500


def page(report: Report, reader: Reader | None = None, as_format: Format | None = None) -> str:
    """The page. With a `reader`, some rows are drawn token by token: the first, the longest, and those that lose something."""
    environment = Environment(
        loader=PackageLoader("tunewright.data", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"bars": bars, "shares": shares, "rows": rows, "visible": visible, "kinds": KINDS, "pieces": _PIECES}
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    reports = [report, report.validation] if report.validation else [report]
    drawn = {str(one.path): _xrays(one, reader, as_format) for one in reports}
    return environment.get_template("report.html").render(reports=reports, drawn=drawn, style=Markup(style), digest=digest)


def _xrays(report: Report, reader: Reader | None, as_format: Format | None) -> list[Ray]:
    if not reader or not report.tokens or not report.tokens.kept:
        return []
    lines = report.tokens.lines
    lost = [line for what in ("nothing_to_learn_after_cut", "cut_trained_rows", "unended", "cut_rows") for line in lines.get(what, [])[:1]]
    longest = [line for _, line in report.tokens.lengths.longest[:1]] if report.tokens.lengths else []
    found: list[Ray] = []
    for line in list(dict.fromkeys([*report.first[:2], *lost, *longest]))[:_XRAYS]:
        example, _ = at_line(report.path, line, as_format)
        if example:
            try:
                found += rays(example, reader)
            except NotRenderable:
                continue
    return found


def bars(spread: Spread, limit: int = 0, unit: str = "") -> Markup:
    """A histogram as SVG; a line marks `limit`, and what lies beyond it is red."""
    highest = max(height for *_, height in spread.bars)
    start, end = spread.bars[0][0], max(spread.bars[-1][1], spread.bars[0][0] + 1)
    scale = (_WIDTH - _LEFT) / (end - start)
    top = _HEIGHT - _BELOW
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, f"Histogram of {unit} a row")]
    for low, high, height in spread.bars:
        x, tall = _LEFT + (low - start) * scale, (top - 14) * height / highest
        kind = "cut" if limit and low >= limit else "bar"
        box = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
        parts.append(box.format(kind, x, top - tall, max(1.0, (high - low) * scale - 1), tall, f"{low:,} to {high - 1:,} {unit}: {rows(height)}"))
    parts.append(Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(_LEFT, top, _WIDTH, top))
    parts.append(
        Markup('<text class="end" x="{}" y="14">{}</text><text class="end" x="{}" y="{}">0</text>').format(_LEFT - 6, f"{highest:,}", _LEFT - 6, top)
    )
    label = Markup('<text class="{}" x="{:.1f}" y="{}">{}</text>')
    for value, anchor in ((start, "start"), (spread.median, "middle"), (end - 1, "end")):
        parts.append(label.format(anchor, _LEFT + (value - start) * scale, top + 15, f"{value:,}" + (" median" if anchor == "middle" else "")))
    if limit and start < limit < end:
        x = _LEFT + (limit - start) * scale
        parts.append(Markup('<line class="limit" x1="{:.1f}" y1="0" x2="{:.1f}" y2="{}"/>').format(x, x, top))
        parts.append(label.format("end limit", x - 4, 12, f"cut at {limit:,}"))
    return Markup("").join([*parts, Markup("</svg>")])


def shares(parts: Sequence[tuple[str, int, str]]) -> Markup:
    """(name, count, class) as one bar of 640 by 22, with its legend in text below."""
    total = max(1, sum(count for _, count, _ in parts))
    x, drawn = (
        0.0,
        [Markup('<svg viewBox="0 0 640 24" role="img" aria-label="{}">').format(", ".join(f"{name} {count:,}" for name, count, _ in parts))],
    )
    for name, count, kind in parts:
        wide = 640 * count / total
        box = Markup('<rect class="{}" x="{:.2f}" y="1" width="{:.2f}" height="22"><title>{}</title></rect>')
        drawn.append(box.format(kind, x, max(wide, 0.8 if count else 0), f"{name}: {count:,} ({count / total:.1%})"))
        x += wide
    legend = Markup(" ").join(
        Markup('<span class="key {}">{} <b>{}</b> ({})</span>').format(k, n, f"{c:,}", f"{c / total:.1%}") for n, c, k in parts if c
    )
    return Markup("").join([*drawn, Markup("</svg>"), Markup('<p class="legend">{}</p>').format(legend)])
