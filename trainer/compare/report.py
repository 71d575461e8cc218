"""`results.json`, the pictures, and `report.html`: one file that needs no other and runs no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from agent.disk import write_whole
from trainer.compare import tables
from trainer.compare.figures import draw_all
from trainer.compare.results import Comparison
from trainer.compare.text import TextTable

RESULTS, REPORT = "results.json", "report.html"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --line: #d5d5d5; --soft: #666666; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #161616; --line: #3a3a3a; --soft: #9a9a9a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
.headline { font-size: 1.05rem; border-left: 3px solid var(--soft); padding-left: 1rem; }
.note { color: var(--soft); font-size: 0.85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
table.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
img { max-width: 100%; background: #ffffff; border-radius: 4px; }
pre { font-size: 0.78rem; overflow-x: auto; border: 1px solid var(--line); padding: 0.8rem; }
"""


def write_report(output: Path, comparison: Comparison) -> None:
    """Write all that a reader sees; each file appears whole, in place of an older one.

    Raises:
        OSError: they cannot be written.
    """
    write_whole(output / RESULTS, f"{comparison.model_dump_json(indent=2)}\n")
    pictures = {title: path.read_bytes() for title, path in draw_all(comparison, output).items()}
    write_whole(output / REPORT, page(comparison, pictures))


def page(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """The report as HTML; `pictures` are PNGs by title."""
    images = [
        f'<h2>{escape(title)}</h2>\n<img alt="{escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for title, png in pictures.items()
    ]
    figures = [
        tables.summary,
        tables.trained_rows,
        tables.matchings,
        tables.beside_reference,
        tables.all_points,
        tables.per_task,
        tables.compute,
    ]
    words = [tables.methods, *([tables.failures] if comparison.failures else [])]
    settings = json.dumps(comparison.settings, indent=2, ensure_ascii=False)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Comparison on {escape(comparison.model)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>Comparison on {escape(comparison.model)}</h1>",
        *(f'<p class="headline">{escape(told)}</p>' for told in (comparison.headline, *comparison.notes)),
        _table(figures[0](comparison)),
        *images,
        *(_table(make(comparison)) for make in figures[1:]),
        *(_table(make(comparison), kind="text") for make in words),
        f"<h2>Settings</h2><pre>{escape(settings)}</pre>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(table: TextTable, kind: str = "figures") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )
