"""Reports of commands on stdout."""

import json
import sys
from collections.abc import Mapping
from typing import Any


def show(values: Mapping[str, Any], title: str, as_json: bool) -> None:
    """A report on stdout, as one JSON object or as a table."""
    if as_json:
        print(json.dumps(values, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in _rows(values):
        table.add_row(name, value)
    # where there is no terminal, lines are as long as they need to be
    Console(width=None if sys.stdout.isatty() else 400, markup=False, highlight=False).print(table)


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            rows += [(f"{name}.{key}", _text(inner)) for key, inner in value.items()]
        else:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(str, value)) if value else "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
