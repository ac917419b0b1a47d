"""Pieces of a report: tables, and figures that are drawn after the page is laid out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd


def table(frame: pd.DataFrame, caption: str, *, words: bool = False) -> str:
    """A frame as HTML; unknown is –, everything is escaped. words: text rather than numbers, so left-aligned."""
    def cell(v: Any) -> str:
        if v is None or v is pd.NA or (isinstance(v, float) and v != v):
            return "–"
        return f"{v:,.4g}" if isinstance(v, float) else escape(str(v))

    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in frame.columns)
    rows = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in frame.itertuples(index=False))
    look = ' class="words"' if words else ""
    return f"<table{look}><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def figure(box: str, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], label: str, caption: str) -> str:
    """A figure by its plotly data; box: id of its element; label: its accessible name."""
    payload = json.dumps([traces, {**layout, "autosize": True}], allow_nan=False).replace("</", "<\\/")
    return (
        f'<figure><div id="{box}" role="img" aria-label="{escape(label, quote=True)}"></div><figcaption>{escape(caption)}</figcaption>'
        f'<script type="application/json" data-for="{box}">{payload}</script></figure>'
    )
