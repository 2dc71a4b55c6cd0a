"""The one renderer of all reports: pages of text, tables and pictures, the same tables in Markdown."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..config import CONFIGS, read_mapping
from ..files import write_json
from .intervals import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .9rem .2rem 0; text-align: left }
td + td, th + th { text-align: right } img { max-width: 100% } pre, code { background: #f3f3f3 }
"""


@cache
def layout() -> dict[str, Any]:
    """What the pages show: `configs/report.yaml`."""
    return read_mapping(CONFIGS / "report.yaml")


def figure_at(report: Mapping[str, Any], name: str) -> float | None:
    """The figure of a dotted name in nested ones; None where it was not measured."""
    value: Any = report
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True)
class Table:
    """Cells of any kind, see `cell`; the first column names the rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Picture:
    """A picture beside the page."""

    file: str


@dataclass(frozen=True)
class Link:
    """A line that leads elsewhere."""

    href: str
    text: str


Part = str | Table | Picture | Link


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it: paragraphs, tables, pictures."""

    title: str
    parts: Sequence[Part]


def cell(value: Any) -> str:
    """What a cell shows: a figure as `.96 [.90, .99] (64)`, value, interval and number of streams;
    other numbers to three digits; `-` where there is nothing.
    """
    if isinstance(value, Figure):
        if value.value is None:
            return "-"
        return f"{_number(value.value)} [{_number(value.low)}, {_number(value.high)}] ({value.n})"
    return "-" if value is None else _number(value) if isinstance(value, float) else str(value)


def differences(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    """Paired comparisons as `figures.conditions` and `figures.models_compared` give them."""
    names = ["first", "second", "difference"]
    rows = []
    for row in comparisons:
        sides = f", {row['against']}" if "against" in row else ""
        bounds = f"[{_number(row['low'])}, {_number(row['high'])}]"
        rows.append([row["figure"] + sides, *(row[name] for name in names), bounds, row["n"], row["p"]])
    return Table(["", *names, "95 % interval", "pairs", "McNemar's p"], rows)


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write sections as one HTML page."""
    parts = [
        f"<!doctype html><meta charset=utf-8><title>streamgen: {html.escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
    ]
    for section in sections:
        if section.title:
            parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [_html(part) for part in section.parts]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def write_beside(
    out_dir: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    table: Table,
    pictures: Sequence[str] = (),
    more: Sequence[Section] = (),
) -> None:
    """Reports beside each other, a row each: `<name>.json`, `table.md`, and a page on which all but the first
    are compared with it, as their `against` says.
    """
    write_json(out_dir / f"{name}.json", rows)
    (out_dir / "table.md").write_text(markdown(table), encoding="utf-8")
    first = rows[0]["name"]
    compared = [
        Section(f"{row['name']} against {first}, on equal streams", [differences(row["against"])])
        for row in rows[1:]
    ]
    whole = Section("", [table, *map(Picture, pictures)])
    write_page(out_dir / "index.html", name, [whole, *compared, *more])


def markdown(table: Table) -> str:
    """A table for documents."""
    lines = [f"| {' | '.join(table.head)} |", f"|---|{'---|' * (len(table.head) - 1)}"]
    lines += [f"| {' | '.join(cell(value) for value in row)} |" for row in table.rows]
    return "\n".join(lines) + "\n"


def _html(part: Part) -> str:
    if isinstance(part, Table):
        lines = ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in part.head) + "</tr>"]
        lines += [
            "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>"
            for row in part.rows
        ]
        return "<table>" + "\n".join(lines) + "</table>"
    if isinstance(part, Picture):
        name = html.escape(part.file)
        return f'<p><img src="{name}" alt="{name}"></p>'
    if isinstance(part, Link):
        return f'<p><a href="{html.escape(part.href)}">{html.escape(part.text)}</a></p>'
    return f"<p>{html.escape(part)}</p>"


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.3g}"
