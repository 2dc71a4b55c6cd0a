"""Finished reports beside each other: a table, bars, the same prompts and seeds below each other."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from streamgen.errors import InputError

from ..scenes import contact_sheet
from .report import STYLE, number, table

#: Suites of which streams are shown, and how many of each.
_SHOWN = {"prompts": 4, "switches": 3, "drags": 2, "drift": 2}
_FRAMES = 12
#: Heading, and where the figure is in a report.
_COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("colour", ("color_accuracy",)),
    ("background", ("background_accuracy",)),
    ("shape", ("shape_accuracy",)),
    ("motion", ("motion_accuracy",)),
    ("unseen pairs", ("unseen_accuracy",)),
    ("drag error", ("track_error",)),
    ("motion after a drag", ("release_accuracy",)),
    ("switch within 1 s", ("switch_soon",)),
    ("the rest kept", ("switch_kept",)),
    ("60 s: first 4 s", ("drift", "start")),
    ("last 4 s", ("drift", "end")),
    ("speed kept", ("drift", "speed_kept")),
    ("240 s: last 4 s", ("drift_long", "end")),
)
#: Figures that are shares, drawn as bars.
_BARS = (0, 1, 2, 3, 4, 7, 8)


@dataclass(frozen=True)
class Finished:
    """A report that an evaluation left, under the name it is to have beside others."""

    name: str
    folder: Path
    report: Mapping[str, Any]

    def figure(self, keys: Sequence[str]) -> float | None:
        """A figure of the report; None where it was not measured."""
        value: Any = self.report
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, float) else None

    def streams(self, suite: str) -> dict[tuple[str, int], Path]:
        """Kept streams of a suite, by prompt and seed."""
        rows = self.report["samples"].get(suite, ())
        return {(row["prompt"], row["seed"]): self.folder / "streams" / row["stream"] for row in rows}


def read_report(argument: str) -> Finished:
    """Read `NAME=DIR`, or `DIR` under the folder's own name.

    Raises:
        InputError: no report there, or one from before streams were listed in it.
    """
    name, equals, rest = argument.partition("=")
    folder = Path(rest if equals else argument)
    name = name if equals else folder.name
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        complete = {"samples", "n", "settings"} <= set(report)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--report {argument}: expected a finished report's folder ({error})") from None
    if not complete:
        raise InputError(
            f"--report {argument}: an older report; the command that made it brings it up to date"
        )
    return Finished(name, folder, report)


def compare_reports(arguments: Sequence[str], out_dir: Path) -> list[dict[str, Any]]:
    """Write `index.html`, `table.md`, `reports.json`, `reports.png` and sheets of the same prompts and seeds.

    Returns:
        The rows of the table, figures by their headings.
    """
    reports = [read_report(argument) for argument in arguments]
    rows = [
        {"name": one.name, "digest": one.report["digest"], "steps": one.report["settings"]["steps"]}
        | {heading: one.figure(keys) for heading, keys in _COLUMNS}
        for one in reports
    ]
    (out_dir / "reports.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out_dir / "table.md").write_text(_markdown(rows), encoding="utf-8")
    _plot(rows, out_dir / "reports.png")
    sheets = [name for suite in _SHOWN if (name := _sheet(reports, suite, out_dir)) is not None]
    (out_dir / "index.html").write_text(_page(reports, rows, ["reports.png", *sheets]), encoding="utf-8")
    return rows


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown, for documents; columns that no row has are left out."""
    headings = ["steps", *_known(rows)]
    lines = [f"| | {' | '.join(headings)} |", f"|---|{'---|' * len(headings)}"]
    for row in rows:
        cells = [str(row["steps"]), *(number(row[heading]) for heading in headings[1:])]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _known(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [heading for heading, _ in _COLUMNS if any(row[heading] is not None for row in rows)]


def _plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Shares as bars, a group for each figure that all reports have."""
    from matplotlib.figure import Figure

    headings = [_COLUMNS[index][0] for index in _BARS]
    headings = [name for name in headings if all(row[name] is not None for row in rows)] or headings
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        left = [i + (place - (len(rows) - 1) / 2) * width for i in range(len(headings))]
        axis.bar(left, [row[heading] or 0.0 for heading in headings], width, label=row["name"])
    axis.set_xticks(range(len(headings)), headings)
    axis.set_ylim(0, 1)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=7, ncols=min(len(rows), 4), loc="lower left")
    figure.savefig(path, dpi=110)


def _sheet(reports: Sequence[Finished], suite: str, out_dir: Path) -> str | None:
    """Prompts that at least two reports streamed, each as every one of these shows it; None without any."""
    streams = [one.streams(suite) for one in reports]
    every = dict.fromkeys(key for some in streams for key in some)
    shared = [key for key in every if sum(key in some for some in streams) > 1][: _SHOWN[suite]]
    if not shared:
        return None
    clips: list[Tensor] = []
    captions: list[str] = []
    for prompt, seed in shared:
        showing = [
            (one.name, some[prompt, seed])
            for one, some in zip(reports, streams, strict=True)
            if (prompt, seed) in some
        ]
        clips += [_frames(path) for _, path in showing]
        first, *others = (name for name, _ in showing)
        captions += [f"{prompt}, seed {seed}\n{first}", *others]
    name = f"{suite}.png"
    contact_sheet(clips, captions, out_dir / name, frames=_FRAMES)
    return name


def _frames(path: Path) -> Tensor:
    try:
        return load_file(path)["frames"]
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected a stream that its report lists ({error})") from None


def _page(reports: Sequence[Finished], rows: Sequence[Mapping[str, Any]], pictures: Sequence[str]) -> str:
    headings = _known(rows)
    figures = [[row["name"], *(number(row[heading]) for heading in headings)] for row in rows]
    about = [
        [one.name, str(one.report["model"]), one.report["digest"][:12], json.dumps(one.report["n"])]
        for one in reports
    ]
    parts = [
        "<!doctype html><meta charset=utf-8><title>streamgen: reports</title>",
        f"<style>{STYLE}</style><h1>Reports</h1>",
        table(["", *headings], figures),
        *(f'<p><img src="{html.escape(name)}" alt="{html.escape(name)}"></p>' for name in pictures),
        table(["", "model", "weights", "streams"], about),
    ]
    return "\n".join(parts) + "\n"
