"""A page in one file: sections of text, tables and pictures, all text escaped, nothing fetched from elsewhere.

The numbers that the page shows lie in it once more, as JSON in the element `#report-data`.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DATA_ID = "report-data"

# A browser that is shown something hostile all the same runs no script of it and asks no one.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid #ccc; padding-top: 1rem; }
nav a { margin-right: 1em; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .15rem .7rem; border-bottom: 1px solid #e5e5e5; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: min(100%, 48rem); max-height: 60rem; }
pre { background: #f6f6f6; padding: .7rem; overflow: auto; }
.left-out { color: #777; }
"""


@dataclass(frozen=True)
class Table:
    """Rows under a head; shown folded where they are many."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Picture:
    """A figure and what it shows."""

    title: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A part of the page, or one line that says what it needs."""

    anchor: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    text: str = ""
    """Shown as it is."""
    left_out: str = ""
    """Which option gives this section; it is empty but for this line."""


def page(title: str, sections: Sequence[Section], numbers: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    links = "".join(f'<a href="#{escape(part.anchor)}">{escape(part.title)}</a> ' for part in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<nav>{links}</nav>
{"".join(_section(part) for part in sections)}
<script type="application/json" id="{DATA_ID}">{json_in_html(numbers)}</script>
</body>
</html>
"""


def json_in_html(value: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(_finite(value), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def shown(value: object) -> str:
    """A value as tables show it."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _section(part: Section) -> str:
    body = [f"<p>{escape(line)}</p>" for line in part.lines]
    if part.left_out:
        body.append(f'<p class="left-out">{escape(part.left_out)}</p>')
    body += [
        f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture.png).decode()}"><figcaption>{escape(picture.title)}</figcaption></figure>'
        for picture in part.pictures
    ]
    body += [_table(table) for table in part.tables]
    if part.text:
        body.append(f"<pre>{escape(part.text)}</pre>")
    return f'<section id="{escape(part.anchor)}">\n<h2>{escape(part.title)}</h2>\n' + "\n".join(body) + "\n</section>\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(shown(value))}</td>" for value in row) + "</tr>\n" for row in table.rows
    )
    return (
        f"<details{' open' if len(table.rows) <= 12 else ''}><summary>{escape(table.title)}</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></details>"
    )
