"""A static drawing of a figure: what GitHub, nbconvert and printed notebooks show."""

from __future__ import annotations

from html import escape

import numpy as np

from windtunnel.cockpit import palette
from windtunnel.cockpit.decimate import decimate
from windtunnel.cockpit.figures.spec import FigureSpec, Trace

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 58, 44
POINTS = 300
DASHES = {"solid": "", "dash": ' stroke-dasharray="6 4"', "dot": ' stroke-dasharray="2 3"'}


def ticks(lo: float, hi: float, n: int = 5) -> list[float]:
    """About n round numbers covering [lo, hi]."""
    if not np.isfinite([lo, hi]).all() or hi <= lo:
        return [lo]
    raw = (hi - lo) / n
    step = 10 ** np.floor(np.log10(raw))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= raw * 0.999)
    return [float(x) for x in np.arange(np.ceil(lo / step) * step, hi + step * 1e-6, step)]


def draw(spec: FigureSpec, theme: str = "light") -> str:
    """The figure as an SVG document (about 20 KB at most)."""
    x_lo, x_hi, y_lo, y_hi = _extent(spec)
    log = spec.log_x

    def px(x: np.ndarray) -> np.ndarray:
        value = np.log10(np.maximum(x, 1e-12)) if log else x
        a, b = (np.log10(x_lo), np.log10(x_hi)) if log else (x_lo, x_hi)
        return np.asarray(LEFT + (value - a) / ((b - a) or 1) * (WIDTH - LEFT - RIGHT))

    def py(y: np.ndarray) -> np.ndarray:
        return np.asarray(HEIGHT - BOTTOM - (y - y_lo) / ((y_hi - y_lo) or 1) * (HEIGHT - TOP - BOTTOM))

    ink, grid = palette.TEXT[theme], palette.GRID[theme]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(spec.title + ": " + spec.text, quote=True)}" font-family="sans-serif" font-size="11" fill="{ink}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{palette.GROUND[theme]}"/>',
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold">{escape(spec.title)}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(spec.x_title)}</text>',
        f'<text transform="translate(13 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(spec.y_title)}</text>',
    ]
    for y in ticks(y_lo, y_hi):
        at = float(py(np.array(y)))
        out.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{grid}"/>'
                   f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in [10.0**k for k in range(int(np.ceil(np.log10(x_lo))), int(np.log10(x_hi)) + 1)] if log else ticks(x_lo, x_hi, 8):
        out.append(f'<text x="{float(px(np.array(x))):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    for bound, label in spec.lines:
        if y_lo <= bound <= y_hi:
            at = float(py(np.array(bound)))
            out.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{ink}" stroke-dasharray="2 3"/>'
                       f'<text x="{WIDTH - RIGHT}" y="{at - 3:.1f}" text-anchor="end">{escape(label)}</text>')
    at_x = float(LEFT)
    for t in spec.traces:
        colour = t.colour(theme)
        out.append(f'<rect x="{at_x:.0f}" y="30" width="14" height="4" fill="{colour}"/><text x="{at_x + 18:.0f}" y="36">{escape(t.name)}</text>')
        at_x += 30 + 6.2 * len(t.name)
        out.extend(_lines(t, px, py, colour))
    return "".join(out) + "</svg>"


def _extent(spec: FigureSpec) -> tuple[float, float, float, float]:
    xs = np.concatenate([t.x for t in spec.traces if len(t.x)] or [np.array([0.0, 1.0])])
    ys = np.concatenate([t.y[np.isfinite(t.y)] for t in spec.traces if len(t.y)] or [np.array([0.0, 1.0])])
    ys = np.r_[ys, [bound for bound, _ in spec.lines]] if len(ys) else np.array([0.0, 1.0])
    y_lo, y_hi = spec.y_range or (min(0.0, float(ys.min())), float(ys.max()) * 1.05 or 1.0)
    x_lo, x_hi = float(xs.min()), float(xs.max())
    return x_lo, x_hi if x_hi > x_lo else x_lo + 1.0, y_lo, y_hi if y_hi > y_lo else y_lo + 1.0


def _lines(t: Trace, px, py, colour: str) -> list[str]:  # type: ignore[no-untyped-def]
    """One path per stretch without gaps."""
    keep = decimate(t.y, POINTS)
    x, y = px(t.x[keep]), py(t.y[keep])
    out, current = [], ""
    for a, b in zip(x, y):
        if not np.isfinite(b):
            out.append(current)
            current = ""
        elif not current:
            current = f"M{a:.1f} {b:.1f}"
        else:
            current += f"H{a:.1f}V{b:.1f}" if t.step else f"L{a:.1f} {b:.1f}"
    out.append(current)
    return [f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="1.8"{DASHES[t.dash]}/>' for d in out if d]
