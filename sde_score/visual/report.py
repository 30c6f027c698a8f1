"""One HTML page with everything that a run found out: no script, no link to elsewhere, pictures inside.

The page opens from a mail, a CI artifact or a disk without a network; a content security policy forbids it to load
anything.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sde_score.files import write_bytes
from sde_score.visual.images import png_bytes
from sde_score.visual.svg import format_number, format_with_error

Image = str | os.PathLike | bytes | np.ndarray


@dataclass
class Table:
    """Rows of results.

    Args:
        columns: headings.
        rows: cells: text, numbers, ``None`` (a dash), ``(value, standard error)``, ``(None, reason)`` for what has no
            value, or anything with ``value`` and ``stderr``.
        highlight: indices of the rows that are this run's own, among baselines.
        note: a line below.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    highlight: Sequence[int] = ()
    note: str = ""


@dataclass
class Section:
    """A heading and what stands under it, in this order: text, table, charts, images, commands.

    Args:
        title: heading.
        text: paragraphs, separated by empty lines; plain text, everything is escaped.
        image: one picture or several: path of a PNG, GIF or JPEG, its bytes, or a uint8 grid ``(H, W, 3)``;
            ``(picture, caption)`` for a caption.
        table: one ``Table`` or several.
        svg: charts made by ``sde_score.visual.svg``; trusted, set in as they are.
        commands: command lines, to be copied.
    """

    title: str
    text: str = ""
    image: Any = None
    table: Table | Sequence[Table] | None = None
    svg: str | Sequence[str] | None = None
    commands: Sequence[str] = field(default_factory=tuple)


STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1d232b;--soft:#5d6875;--line:#e2e6eb;
--accent:#1f5fae;--tint:#eaf1fa;--bar:#b9c4d1;--c1:#d9622b;--c2:#2a8c5a;--c3:#7d4a9e}
@media(prefers-color-scheme:dark){:root{--page:#12161b;--card:#1b2027;--ink:#e4e9ef;--soft:#98a4b1;--line:#2e3640;
--accent:#6aa8f0;--tint:#20304a;--bar:#46525f;--c1:#f08a55;--c2:#5cc48e;--c3:#b98ad8}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:62rem;margin:0 auto;padding:2rem 1rem 3rem}
header{margin:0 .2rem 1.4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .5rem;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:0 0 .7rem}
p{margin:0 0 .8rem;white-space:pre-line;max-width:46rem}
header p{color:var(--soft);font-size:1.05rem}
section,.card{background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:1.2rem 1.3rem;margin:0 0 1rem}
nav{display:flex;flex-wrap:wrap;gap:.4rem;margin-top:.8rem}
nav a{color:var(--accent);text-decoration:none;border:1px solid var(--line);background:var(--card);
border-radius:99px;padding:.12rem .75rem;font-size:.88rem}
.wide{overflow-x:auto;margin:.2rem 0 .9rem}
table{border-collapse:collapse;font-size:.94rem;min-width:min(100%,28rem)}
th{text-align:left;color:var(--soft);font-weight:500;font-size:.85rem}
th,td{padding:.38rem .9rem .38rem .6rem;border-bottom:1px solid var(--line);vertical-align:baseline}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.own td{background:var(--tint);font-weight:600}
.se{color:var(--soft);font-weight:400}
.note,figcaption{color:var(--soft);font-size:.88rem}
.pictures{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
figure{margin:.2rem 0 .6rem;max-width:100%}
figure img{display:block;max-width:100%;height:auto;border-radius:6px;background:#fff;border:1px solid var(--line)}
figcaption{margin-top:.35rem;max-width:46rem}
pre{background:var(--page);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem;
white-space:pre-wrap;overflow-wrap:anywhere;
font:13.5px/1.5 ui-monospace,Menlo,Consolas,monospace;margin:.2rem 0 .8rem}
.chart{width:100%;max-width:40rem;height:auto;display:block;font-size:13px;margin:.2rem 0 .9rem}
.chart text{fill:var(--ink)}
.chart .bar{fill:var(--bar)}
.chart .accent{fill:var(--accent)}
.chart .whisker{stroke:var(--ink);stroke-width:1.3;fill:none}
.chart .rule{stroke:var(--line);fill:none}
.chart .line{fill:none;stroke-width:2;stroke:var(--accent);stroke-linejoin:round}
.chart .c1{stroke:var(--c1)}
.chart .c2{stroke:var(--c2)}
.chart .c3{stroke:var(--c3)}
summary{cursor:pointer;font-weight:600}
dd summary{font-weight:400;color:var(--accent)}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.25rem 1.2rem;margin:.8rem 0 0;font-size:.92rem}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;min-width:0}
footer{color:var(--soft);font-size:.85rem;margin:1.2rem .2rem 0}
@media(max-width:34rem){main{padding:1.2rem .6rem 2rem}section,.card{padding:1rem .9rem}h1{font-size:1.45rem}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}}
@media print{body{background:#fff}section{break-inside:avoid}nav{display:none}}
"""

_KINDS = {b"\x89PNG": "image/png", b"GIF8": "image/gif", b"\xff\xd8\xff": "image/jpeg"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _data_uri(image: Image) -> str:
    if isinstance(image, (str, os.PathLike)):
        data = Path(image).read_bytes()
    else:
        data = image if isinstance(image, bytes) else png_bytes(np.asarray(image))
    kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)), None)
    if kind is None:
        raise ValueError(f"A picture must be PNG, GIF or JPEG; got bytes that begin with {data[:8]!r}.")
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _cell(cell: Any) -> tuple[str, bool]:
    """HTML of a cell and whether it is a number."""
    if cell is None:
        return "–", True
    if isinstance(cell, str):
        return escape(cell), False
    if hasattr(cell, "value") and hasattr(cell, "stderr"):
        if getattr(cell, "error", None):
            return f'<span class="note">failed: {escape(str(cell.error))}</span>', True
        cell = (cell.value, cell.stderr)
    if isinstance(cell, tuple) and len(cell) == 2 and cell[0] is None:
        return ("–", True) if cell[1] is None else (f'<span class="note">{escape(str(cell[1]))}</span>', False)
    if isinstance(cell, tuple) and len(cell) == 2 and not isinstance(cell[0], str):
        value, error = format_with_error(*cell)
        return escape(value) + (f' <span class="se">± {escape(error)}</span>' if error else ""), True
    if isinstance(cell, (int, float, np.number)):
        return escape(format_number(cell)), True
    return escape(str(cell)), False


def _table(table: Table) -> str:
    body, numeric = [], [True] * len(table.columns)
    for i, row in enumerate(table.rows):
        if len(row) != len(table.columns):
            raise ValueError(f"Row {i} of a table has {len(row)} cells, its heading {len(table.columns)}: {row!r}.")
        cells = [_cell(cell) for cell in row]
        numeric = [n and c[1] for n, c in zip(numeric, cells, strict=True)]
        body.append(cells)
    mark = lambda j: ' class="n"' if numeric[j] else ""  # noqa: E731
    head = "".join(f"<th{mark(j)}>{escape(str(c))}</th>" for j, c in enumerate(table.columns))
    lines = []
    for i, cells in enumerate(body):
        own = ' class="own"' if i in table.highlight else ""
        lines.append(f"<tr{own}>" + "".join(f"<td{mark(j)}>{html}</td>" for j, (html, _) in enumerate(cells)) + "</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>{note}'


def _several(x: Any, single: type | tuple[type, ...]) -> list[Any]:
    if x is None:
        return []
    return [x] if isinstance(x, single) else list(x)


def _figures(images: Any) -> str:
    if images is None:
        return ""
    captioned = isinstance(images, tuple) and len(images) == 2 and isinstance(images[1], str)
    single = (str, os.PathLike, bytes, np.ndarray)
    items = [images] if captioned or isinstance(images, single) else list(images)
    figures = []
    for item in items:
        picture, caption = item if isinstance(item, tuple) else (item, "")
        alt = escape(caption, quote=True)
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        figures.append(f'<figure><img alt="{alt}" src="{_data_uri(picture)}">{below}</figure>')
    return f'<div class="pictures">{"".join(figures)}</div>'


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _section(section: Section, anchor: str) -> str:
    parts = [f'<section id="{anchor}"><h2>{escape(section.title)}</h2>', _paragraphs(section.text)]
    parts += [_table(table) for table in _several(section.table, Table)]
    for chart in _several(section.svg, str):
        if not chart.lstrip().startswith("<svg") or "<script" in chart.lower():
            raise ValueError(
                "Section.svg takes charts of sde_score.visual.svg: they begin with <svg and hold no script."
            )
        parts.append(chart)
    parts.append(_figures(section.image))
    if section.commands:
        parts.append(f"<pre>{escape(chr(10).join(section.commands))}</pre>")
    return "".join(parts) + "</section>"


def _provenance(values: Mapping[str, Any]) -> str:
    items = []
    for key, value in values.items():
        if isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and len(value) > 8):
            text = escape(json.dumps(value, indent=2, ensure_ascii=False, default=str))
            items.append(
                f"<dt>{escape(str(key))}</dt><dd><details><summary>show</summary><pre>{text}</pre></details></dd>"
            )
        else:
            items.append(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>")
    listed = "".join(items)
    heading = "<summary>How these numbers came about</summary>"
    return f'<details id="provenance" class="card" open>{heading}<dl>{listed}</dl></details>'


def render_report(
    *,
    title: str,
    summary: str = "",
    sections: Sequence[Section] = (),
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """The page as text; see ``write_report``."""
    bodies = [_section(section, f"s{i}") for i, section in enumerate(sections)]
    links = "".join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(sections))
    contents = f"<nav>{links}</nav>" if len(sections) > 2 else ""
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main><header><h1>{escape(title)}</h1>{_paragraphs(summary)}{contents}</header>\n"
        + "\n".join(bodies)
        + (_provenance(provenance) if provenance else "")
        + "<footer>Written by sde_score. This page holds its pictures and loads nothing.</footer>"
        + "</main></body></html>\n"
    )


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    summary: str = "",
    sections: Sequence[Section] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write one self-contained HTML page, whole or not at all.

    Args:
        path: e.g. ``runs/digits/report.html``.
        title, summary: plain text; everything is escaped.
        sections: in the order of the page.
        provenance: what the numbers depend on: versions, seeds, numbers of samples, NFE; a mapping inside (the
        config) folds away.

    Raises:
        ValueError: a picture that is no picture, a table whose rows do not fit its heading, a chart that is no SVG.
        FileNotFoundError: a picture that is not there.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"A report is written as .html; got {os.fspath(path)!r}.")
    page = render_report(title=title, summary=summary, sections=sections, provenance=provenance)
    return write_bytes(path, page.encode("utf-8"))
