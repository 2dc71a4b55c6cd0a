"""Figures over training time: every report of a run's kept weights, drawn as curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamgen.errors import InputError

from ..files import write_json
from ..plots import panels
from .page import Link, Part, Picture, Section, Table, figure_at, layout, write_page


@dataclass(frozen=True)
class KeptWeights:
    """A checkpoint directory that a run kept, with the minutes of training behind it."""

    directory: Path
    minutes: float
    step: int

    @property
    def name(self) -> str:
        """A folder name that sorts by time."""
        return f"step-{self.step:09d}"


def kept_weights(run_dir: Path) -> list[KeptWeights]:
    """The weights a run kept with `preview.weights: true`, oldest first.

    Raises:
        InputError: no such run, or one that kept none.
    """
    log = run_dir / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"--run {run_dir}: expected a run's folder with metrics.jsonl ({error})") from None
    found = {}
    for row in rows:
        directory = run_dir / "previews" / f"step-{row['step']:09d}" / "export"
        if row["kind"] == "preview" and (directory / "config.yaml").is_file():
            found[int(row["step"])] = KeptWeights(directory, float(row["minutes"]), int(row["step"]))
    if not found:
        raise InputError(f"--run {run_dir}: expected weights kept by preview.weights: true, found none")
    return [found[step] for step in sorted(found)]


def write_curves(points: Sequence[tuple[KeptWeights, Mapping[str, Any]]], out_dir: Path) -> None:
    """Draw reports over minutes into `curves.png`, with `curves.json` and an index page."""
    every: list[dict[str, Any]] = layout()["curves"]
    minutes = [weights.minutes for weights, _ in points]
    rows: list[dict[str, Any]] = [{"minutes": w.minutes, "step": w.step} for w, _ in points]
    measured = [
        panel
        for panel in every
        if any(figure_at(report, name) is not None for _, name in panel["figures"] for _, report in points)
    ]
    canvas, axes = panels(3 * max(1, len(measured)), 3, max(1, len(measured)))
    for row in rows:
        row |= {name.replace(".", "/"): None for panel in every for _, name in panel["figures"]}
    for axis, panel in zip(axes, measured, strict=False):
        for label, name in panel["figures"]:
            values = [figure_at(report, name) for _, report in points]
            for row, value in zip(rows, values, strict=True):
                row[name.replace(".", "/")] = value
            known = [(m, v) for m, v in zip(minutes, values, strict=True) if v is not None]
            if known:
                axis.plot(*zip(*known, strict=True), marker="o", markersize=3, label=label)
                axis.legend(fontsize=7)
        axis.set_title(panel["title"])
        axis.set_xlabel("minutes")
        axis.set_ylim(0, panel["top"])
    canvas.savefig(out_dir / "curves.png")
    write_json(out_dir / "curves.json", rows)
    links = [Link(f"{w.name}/index.html", f"{w.minutes:.0f} minutes, step {w.step}") for w, _ in points]
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    table = Table(names, [[row[name] for name in names] for row in rows])
    parts: list[Part] = [Picture("curves.png"), table, *links]
    write_page(out_dir / "index.html", "figures over training time", [Section("", parts)])
