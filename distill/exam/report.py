"""A report on one exam, and several beside each other, made of rows alone."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamgen.errors import InputError

from ..command import named_folder
from ..evaluation.figures import nested
from ..evaluation.intervals import Figure, average, median, paired_marks, share
from ..evaluation.measures import plain
from ..evaluation.page import Picture, Section, Table, markdown, write_beside, write_page
from ..files import write_json
from ..scenes import contact_sheet
from .facts import ASKS, KINDS
from .plans import CATEGORIES
from .rows import About, FactRow, read_about, read_marks
from .runner import read_video
from .transcript import Transcript

#: What each thing that is asked for means, for people.
ASKED: Mapping[str, str] = {
    "beginning": "what is there before the first event",
    "response": "what an event changes: within a second, and to stay",
    "retention": "what an event does not change",
    "reuse": "what comes back from earlier",
    "control": "held, drawn and let go of by tracks",
    "steadiness": "the same over a minute",
}
#: Streams of each category that are shown, and pictures of each.
_SHOWN, _PICTURES = 3, 14
_MARKS = "marks.json"


def per_stream(
    rows: Iterable[FactRow], number: Callable[[FactRow], float] = lambda row: row.mark
) -> dict[str, float]:
    """The mean number of its facts, by the stream that was looked at; of marks the share that is right."""
    numbers: dict[str, list[float]] = {}
    for row in rows:
        numbers.setdefault(row.stream, []).append(number(row))
    return {name: sum(some) / len(some) for name, some in numbers.items()}


def figures_of(rows: Sequence[FactRow]) -> dict[str, Figure]:
    """All figures by dotted name: of the facts of one stream the share that is right, and of these the mean
    over streams. Under `shuffled.` the same of videos held against what another stream was told.
    """
    own, other = [row for row in rows if row.own], [row for row in rows if not row.own]
    found = _shares(own)
    found["whole"] = share([float(mark == 1) for mark in per_stream(own).values()])
    found |= {f"shuffled.{name}": figure for name, figure in _shares(other).items()}
    numbers: Sequence[tuple[str, str, Callable[[Sequence[float]], Figure]]] = (
        ("shown_within", "seconds", median),
        ("path", "path_error", average),
        ("returns", "likeness", average),
        ("background_kept", "background_psnr", average),
    )
    for fact, name, summary in numbers:
        seen = [row for row in own if row.fact == fact and row.found is not None]
        found[name] = summary(list(per_stream(seen, lambda row: float(row.found)).values()))
    return found


def _shares(rows: Sequence[FactRow]) -> dict[str, Figure]:
    """Of all rows, and of those that have something in common; in the order in which tables have them."""
    place = {name: number for number, name in enumerate(CATEGORIES)}
    kinds = sorted({(place.get(row.category, len(place)), row.category, row.kind) for row in rows})
    names = ["all", *(f"asks.{name}" for name in ASKS), *(f"category.{category}" for _, category, _ in kinds)]
    names += [f"kind.{category}.{kind}" for _, category, kind in kinds]
    groups: dict[str, list[FactRow]] = {name: [] for name in (*names, *(f"fact.{name}" for name in KINDS))}
    for row in rows:
        kind = f"kind.{row.category}.{row.kind}"
        for name in ("all", f"asks.{row.asks}", f"category.{row.category}", kind, f"fact.{row.fact}"):
            groups.setdefault(name, []).append(row)
    return {name: share(list(per_stream(some).values())) for name, some in groups.items()}


def make_report(
    about: About, rows: Sequence[FactRow], transcripts: Sequence[Transcript], videos: Path, out_dir: Path
) -> dict[str, Any]:
    """Write `marks.json`, `marks.md`, `index.html` and a sheet of each category to `out_dir`.

    Returns:
        What `marks.json` has: figures nested by their dotted names, `intervals` and `n` by dotted name, and
        what the marks are marks of.
    """
    figures = figures_of(rows)
    known = {name: figure for name, figure in figures.items() if figure.value is not None}
    report: dict[str, Any] = plain(
        {
            **asdict(about),
            "streams": len(transcripts),
            "marks": nested({name: figure.value for name, figure in known.items()}),
            "intervals": {name: [figure.low, figure.high] for name, figure in known.items()},
            "n": {name: figure.n for name, figure in known.items()},
        }
    )
    write_json(out_dir / _MARKS, report)
    tables = _tables(figures)
    text = [f"## {title}\n\n{markdown(table)}" for title, table in tables]
    (out_dir / "marks.md").write_text("\n".join([f"# Exam of {about.name}\n", *text]), encoding="utf-8")
    sections = [
        Section(
            "",
            [
                f"Version {about.version}, {len(transcripts)} streams; {about.source}, "
                f"weights {about.weights[:16] or '-'}, policy {about.policy or '-'}.",
                "Each mark is the share of a stream's facts that were seen as expected, averaged over "
                "streams: value, 95 % interval, number of streams. The last column holds the same videos "
                "against what other streams were told: what a mark is worth by chance.",
            ],
        ),
        *(Section(title, [table]) for title, table in tables),
    ]
    shown: dict[str, list[Transcript]] = {}
    for one in transcripts:
        if len(some := shown.setdefault(one.category, [])) < _SHOWN:
            some.append(one)
    for category, some in shown.items():
        sections.append(Section(category, [Picture(_sheet(some, videos, out_dir / f"{category}.png"))]))
    missed = _missed(rows, {one.id for some in shown.values() for one in some})
    sections.append(Section("What these streams missed", [missed]))
    sections.append(Section("Settings", [json.dumps(about.settings)]))
    write_page(out_dir / "index.html", f"exam of {about.name}", sections)
    return report


def _tables(figures: Mapping[str, Figure]) -> list[tuple[str, Table]]:
    def table(prefix: str, names: Mapping[str, str] | None = None) -> Table:
        rows = [
            [
                (names or {}).get(name, name),
                figures[f"{prefix}{name}"],
                figures.get(f"shuffled.{prefix}{name}"),
            ]
            for name in (key.removeprefix(prefix) for key in figures if key.startswith(prefix))
            if figures[f"{prefix}{name}"].n
        ]
        return Table(["", "right", "by chance"], rows)

    asked = table("asks.", {name: f"{name}: {text}" for name, text in ASKED.items()})
    whole = [
        ["all facts", figures["all"], figures["shuffled.all"]],
        ["streams with every fact right", figures["whole"], None],
    ]
    numbers = [
        ["seconds until a change shows, median", figures["seconds"]],
        ["distance from the path, of the width", figures["path_error"]],
        ["likeness of a ground that comes back", figures["likeness"]],
        ["ground across an event, dB", figures["background_psnr"]],
    ]
    return [
        ("What is asked for", Table(asked.head, [*asked.rows, *whole])),
        ("Categories", table("category.")),
        ("Kinds of streams", table("kind.")),
        ("Kinds of facts", table("fact.")),
        ("Numbers", Table(["", "found"], numbers)),
    ]


def _sheet(shown: Sequence[Transcript], videos: Path, path: Path) -> str:
    """A contact sheet of streams; returns the name of its file."""
    clips = [read_video(videos / f"{one.id}.mp4", one) for one in shown]
    captions = [
        f"{one.id}, {one.kind}\n" + "\n".join(f"{e['frame']:>4}  {_words(e)}" for e in one.events)
        for one in shown
    ]
    contact_sheet(clips, captions, path, frames=_PICTURES)
    return path.name


def _missed(rows: Sequence[FactRow], shown: set[str]) -> Table:
    """The facts that were not seen as expected, of the streams that are shown."""
    missed = [
        [row.stream, row.asks, row.fact, "{} to {}".format(*row.frames), row.object, row.expect, row.found]
        for row in rows
        if row.own and not row.mark and row.stream in shown
    ]
    return Table(["", "asks", "fact", "frames", "object", "expected", "found"], missed)


def _words(event: Mapping[str, Any]) -> str:
    parts = [event["prompt"]] if "prompt" in event else []
    return ", ".join([*parts, *(key for key in ("motion", "gestures", "settings", "cache") if key in event)])


def compare_exams(arguments: Sequence[str], out_dir: Path) -> list[dict[str, Any]]:
    """Finished exams, each as `NAME=DIR`, beside each other: `index.html`, `table.md` and `exams.json`.

    Returns:
        A row per exam: figures by name, each with `value`, `low`, `high` and `n`, and under `against` the
        comparisons with the first one on equal streams.

    Raises:
        InputError: a folder without marks, or streams that were told something else than those of the first.
    """
    finished = [_finished(argument) for argument in arguments]
    first_name, _, first_rows = finished[0]
    keys = [f"asks.{name}" for name in ASKS] + ["all", "whole"]
    rows, lines = [], []
    for name, about, own in finished:
        _check_same(name, own, first_name, first_rows)
        figures = figures_of(own)
        lines.append([name, *(figures[key] for key in keys)])
        row: dict[str, Any] = {"name": name, "weights": about.weights, "policy": about.policy}
        row["figures"] = {key: vars(figure) for key, figure in figures.items() if figure.n}
        if own is not first_rows:
            row["against"] = compared(first_rows, own)
        rows.append(plain(row))
    table = Table(["", *(key.removeprefix("asks.") for key in keys)], lines)
    write_beside(out_dir, "exams", rows, table)
    return rows


def _check_same(name: str, rows: Sequence[FactRow], first_name: str, first: Sequence[FactRow]) -> None:
    """Raise InputError unless two exams share streams, and these were told the same."""
    told = {row.stream: row.transcript for row in first if row.own}
    shared = [row for row in rows if row.own and row.stream in told]
    if not shared:
        raise InputError(f"--report {name}: expected some of the streams of {first_name}, found none")
    for row in shared:
        if row.transcript != told[row.stream]:
            raise InputError(
                f"--report {name}: expected the exam of {first_name}, "
                f"found another transcript of {row.stream}"
            )


def compared(first: Sequence[FactRow], second: Sequence[FactRow]) -> list[dict[str, Any]]:
    """Streams that both have, by what is asked: whether all such facts of a stream are right."""
    found = []
    for name in (*ASKS, "all"):
        marks = (
            per_stream(row for row in rows if row.own and name in (row.asks, "all"))
            for rows in (first, second)
        )
        sides = ({stream: float(mark == 1) for stream, mark in some.items()} for some in marks)
        if (result := paired_marks(*sides)) is not None:
            found.append({"figure": name, **vars(result)})
    return found


def _finished(argument: str) -> tuple[str, About, list[FactRow]]:
    name, folder = named_folder(argument)
    try:
        return name, read_about(folder), read_marks(folder)
    except InputError as error:
        raise InputError(f"--report {argument}: expected a marked exam's folder ({error})") from None
