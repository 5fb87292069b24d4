"""One self-contained HTML page. Text is escaped unless it is `Html`, which only the functions here make."""

from __future__ import annotations

import base64
import html
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from mtl_jax.evaluation.many_tasks import TABLE_ROWS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; margin: .6rem 0; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { border-bottom: 2px solid #999; } td.number, th.number { text-align: right; }
figure { margin: 1.2rem 0; } img { max-width: 100%; } figcaption { font-size: .85rem; color: #555; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; font-size: .85rem; }
.words span { padding: .1rem .15rem; border-radius: .2rem; } .words { line-height: 1.9; margin: .2rem 0; }
.small { font-size: .8rem; color: #666; margin: 0 0 .8rem; }
.warning { border-left: 4px solid #d55e00; padding-left: .7rem; }
"""


class Html(str):
    """A string that is HTML already."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """A value as HTML: None as "–", floats with four digits, everything else escaped, also for attributes."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("–")
    return Html(html.escape(f"{value:.4f}" if isinstance(value, float) else str(value), quote=True))


def heading(text: str, level: int = 2) -> Html:
    """A heading of level 1 to 3."""
    return Html(f"<h{level}>{escape(text)}</h{level}>")


def paragraph(text: Any, warning: bool = False) -> Html:
    """A paragraph."""
    return Html(f'<p class="warning">{escape(text)}</p>' if warning else f"<p>{escape(text)}</p>")


def bullet_list(values: Iterable[Any]) -> Html:
    """A list; "" for no item."""
    lines = [f"<li>{escape(value)}</li>" for value in values]
    return Html("<ul>" + "".join(lines) + "</ul>" if lines else "")


def code(text: str) -> Html:
    """Commands, or lines of a config."""
    return Html(f"<pre>{escape(text)}</pre>")


def details(title: str, part: Html) -> Html:
    """A part that is shown when its title is clicked."""
    return Html(f"<details><summary>{escape(title)}</summary>{escape(part)}</details>")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
    """A table, folded where it is long; columns of numbers are aligned to the right."""
    right = [not all(isinstance(row[i], str) for row in rows) for i in range(len(header))]

    def cells(tag: str, row: Sequence[Any]) -> str:
        parts = zip(row, right, strict=True)
        return "".join(f"<{tag}{' class=number' if r else ''}>{escape(value)}</{tag}>" for value, r in parts)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', header)}</tr></thead>"
    whole = Html(f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>')
    return whole if len(rows) <= TABLE_ROWS else details(f"{len(rows)} rows", whole)


def small_print(text: Any) -> Html:
    """A line of small print."""
    return Html(f'<p class="small">{escape(text)}</p>')


def coloured_tokens(tokens: Sequence[str], values: Sequence[float]) -> Html:
    """Words with values as background colours: blue above 0, orange below, scaled by the largest absolute value."""
    largest = max((abs(value) for value in values), default=0.0) or 1.0
    spans = []
    for token, value in zip(tokens, values, strict=True):
        red, green, blue = (0, 114, 178) if value > 0 else (230, 159, 0)
        style = f"background: rgba({red},{green},{blue},{abs(value) / largest * 0.75:.2f})"
        spans.append(f'<span style="{style}" title="{value:+.4f}">{escape(token)}</span>')
    return Html(f'<p class="words">{" ".join(spans)}</p>')


def picture(file: pathlib.Path, caption: str) -> Html:
    """A PNG, embedded."""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return Html(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def page(title: str, parts: Iterable[Any]) -> Html:
    """The document, from parts made by the functions above (plain strings are escaped)."""
    body = "\n".join(escape(part) for part in parts)
    return Html(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n{heading(title, 1)}\n{body}\n</body></html>\n"
    )


def save(file: pathlib.Path, title: str, parts: Iterable[Any]) -> pathlib.Path:
    """Writes a page atomically. Returns the file."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    temporary.write_text(page(title, parts), encoding="utf-8")
    os.replace(temporary, file)
    return file
