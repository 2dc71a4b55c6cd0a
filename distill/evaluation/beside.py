"""Finished reports beside each other: a table, bars, paired comparisons, sheets of the same streams."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from streamgen.errors import InputError

from ..command import named_folder
from ..plots import draw_bars, panels
from ..scenes import contact_sheet
from .figures import figures_of, models_compared
from .intervals import Figure
from .page import Section, Table, layout, write_beside
from .report import kept_video
from .rows import About, Row, checked_rows

#: Suites of which streams are shown, and how many of each.
_SHOWN = {"prompts": 4, "switches": 3, "drags": 2, "drift": 2}
_FRAMES = 12


@dataclass(frozen=True)
class Finished:
    """A report that an evaluation left, under the name it is to have beside others."""

    name: str
    folder: Path
    about: About
    rows: list[Row]
    figures: dict[str, Figure]

    def figure(self, name: str) -> Figure | None:
        """A figure of the report; None where it was not measured."""
        found = self.figures.get(name)
        return None if found is None or found.value is None else found

    def streams(self, suite: str) -> dict[tuple[Any, ...], Row]:
        """Streams of a suite of which frames were kept, by what they share with those of other reports; of
        several variants the first.
        """
        found: dict[tuple[Any, ...], Row] = {}
        for row in sorted(self.rows, key=lambda row: (row.seed, row.variant not in _FIRST)):
            if row.suite == suite and row.source == "model" and row.stream is not None:
                found.setdefault(row.pair, row)
        return found


_FIRST = ("plain", "told", "recache")


def read_report(argument: str) -> Finished:
    """Read `NAME=DIR`, or `DIR` under the folder's own name; raises InputError where no report is."""
    name, folder = named_folder(argument)
    try:
        about, rows = checked_rows(folder)
    except InputError as error:
        raise InputError(f"--report {argument}: expected a finished report's folder ({error})") from None
    return Finished(name, folder, about, rows, figures_of(rows))


def compare_reports(arguments: Sequence[str], out_dir: Path) -> list[dict[str, Any]]:
    """Write `index.html`, `table.md`, `reports.json`, `reports.png` and sheets of the same prompts and seeds.

    Returns:
        A row per report: figures by their headings, each with `value`, `low`, `high` and `n`, and under
        `against` the paired comparisons with the first report.
    """
    reports = [read_report(argument) for argument in arguments]
    rows = []
    for one in reports:
        row: dict[str, Any] = {
            "name": one.name,
            "digest": one.about.weights,
            "steps": one.about.sampling["steps"],
        }
        for heading, name in layout()["beside"]:
            found = one.figure(name)
            row[heading] = None if found is None else vars(found)
        if one is not reports[0]:
            row["against"] = models_compared(reports[0].rows, one.rows)
        rows.append(row)
    _plot(reports, out_dir / "reports.png")
    sheets = [sheet for suite in _SHOWN if (sheet := _sheet(reports, suite, out_dir)) is not None]
    made_of = [[one.name, one.about.model, one.about.weights, one.about.settings[:16]] for one in reports]
    what = Section("What they are", [Table(["", "model", "weights", "settings"], made_of)])
    write_beside(out_dir, "reports", rows, _table(reports), ("reports.png", *sheets), [what])
    return rows


def _table(reports: Sequence[Finished]) -> Table:
    """Figures without columns that no report has."""
    known = [
        (h, name) for h, name in layout()["beside"] if any(one.figure(name) is not None for one in reports)
    ]
    rows = [
        [one.name, one.about.sampling["steps"], *(one.figure(name) for _, name in known)] for one in reports
    ]
    return Table(["", "steps", *(heading for heading, _ in known)], rows)


def _plot(reports: Sequence[Finished], path: Path) -> None:
    """Shares as bars with their intervals, a group for each figure that all reports have."""
    columns = [column for column in layout()["beside"] if column[0] in layout()["bars"]]
    columns = [c for c in columns if all(one.figure(c[1]) is not None for one in reports)] or columns
    canvas, (axis,) = panels(11, 3.2)
    series = {one.name: [one.figure(name) for _, name in columns] for one in reports}
    draw_bars(axis, series, [heading for heading, _ in columns])
    axis.set_ylim(0, 1.02)
    axis.legend(fontsize=7, ncols=min(len(reports), 4), loc="lower left")
    canvas.savefig(path)


def _sheet(reports: Sequence[Finished], suite: str, out_dir: Path) -> str | None:
    """Prompts of which at least two reports kept the frames, each as every one of these shows it; None
    without any.
    """
    streams = [one.streams(suite) for one in reports]
    every = dict.fromkeys(key for some in streams for key in some)
    shared = [key for key in every if sum(key in some for some in streams) > 1][: _SHOWN[suite]]
    if not shared:
        return None
    clips: list[Tensor] = []
    captions: list[str] = []
    for key in shared:
        for one, some in zip(reports, streams, strict=True):
            if key not in some:
                continue
            clips.append(_frames(one, some[key]))
            captions.append(one.name)
        place = len(clips) - sum(key in some for some in streams)
        captions[place] = f"{key[1]}, seed {key[2]}\n{captions[place]}"
    name = f"{suite}.png"
    contact_sheet(clips, captions, out_dir / name, frames=_FRAMES)
    return name


def _frames(one: Finished, row: Row) -> Tensor:
    video = kept_video(row, one.folder / "streams")
    if video is None:
        raise InputError(f"{one.folder / 'streams'}: expected {row.stream}, a stream that its rows list")
    return video.frames
