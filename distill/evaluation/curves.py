"""Figures over training time: every report of a run's kept weights, drawn as curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamgen.errors import InputError

from .page import Link, Part, Picture, Section, Table, write_page

#: Panels of the picture: title, figures (label, where it is in the report), lowest and highest value.
_PANELS: tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...], float | None], ...] = (
    (
        "prompts",
        (
            ("colour", ("color_accuracy",)),
            ("shape", ("shape_accuracy",)),
            ("motion", ("motion_accuracy",)),
            ("background", ("background_accuracy",)),
            ("unseen pairs", ("unseen_accuracy",)),
            ("both of two", ("pairs", "both")),
        ),
        1.0,
    ),
    (
        "drags, of the width",
        (("error", ("track_error",)), ("without the track", ("track_error_untold",))),
        None,
    ),
    (
        "switches",
        (
            ("success", ("switch_success",)),
            ("the rest kept", ("switch_kept",)),
            ("kept under keep", ("switch_keep", "switch_kept")),
            ("kept under clear", ("switch_clear", "switch_kept")),
        ),
        1.0,
    ),
    ("after drags", (("own motion again", ("release_accuracy",)),), 1.0),
    ("60 s", (("first 4 s", ("drift", "start")), ("last 4 s", ("drift", "end"))), 1.0),
)


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


def write_curves(points: Sequence[tuple[KeptWeights, Mapping[str, Any]]], out_dir: Path) -> Path:
    """Draw reports over minutes into `curves.png`, with `curves.json` and an index page; returns the page."""
    from matplotlib.figure import Figure

    minutes = [weights.minutes for weights, _ in points]
    rows: list[dict[str, Any]] = [{"minutes": w.minutes, "step": w.step} for w, _ in points]
    measured = [
        panel
        for panel in _PANELS
        if any(_at(report, keys) is not None for _, keys in panel[1] for _, report in points)
    ]
    figure = Figure(figsize=(3 * max(1, len(measured)), 3), layout="constrained")
    axes = figure.subplots(1, max(1, len(measured)), squeeze=False)[0]
    for row in rows:
        row |= {"/".join(keys): None for _, figures, _ in _PANELS for _, keys in figures}
    for axis, (title, figures, top) in zip(axes, measured, strict=False):
        for label, keys in figures:
            values = [_at(report, keys) for _, report in points]
            for row, value in zip(rows, values, strict=True):
                row["/".join(keys)] = value
            known = [(m, v) for m, v in zip(minutes, values, strict=True) if v is not None]
            if known:
                axis.plot(*zip(*known, strict=True), marker="o", markersize=3, label=label)
                axis.legend(fontsize=7)
        axis.set_title(title)
        axis.set_xlabel("minutes")
        axis.set_ylim(0, top)
    figure.savefig(out_dir / "curves.png", dpi=110)
    (out_dir / "curves.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    links = [Link(f"{w.name}/index.html", f"{w.minutes:.0f} minutes, step {w.step}") for w, _ in points]
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    table = Table(names, [[row[name] for name in names] for row in rows])
    page = out_dir / "index.html"
    parts: list[Part] = [Picture("curves.png"), table, *links]
    write_page(page, "figures over training time", [Section("", parts)])
    return page


def _at(report: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None
