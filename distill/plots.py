"""Pictures of numbers: panels, bars with their intervals, and the curves of a run, a PNG file per metric."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .evaluation.intervals import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Curve = tuple[list[int], list[float]]


def panels(width: float, height: float, count: int = 1) -> "tuple[Canvas, list[Axes]]":
    """A canvas of so many inches with `count` panels side by side; raises ImportError without matplotlib."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), dpi=110, layout="constrained")
    return canvas, list(canvas.subplots(1, count, squeeze=False)[0])


def draw_bars(axis: "Axes", series: Mapping[str, Sequence[Figure | None]], names: Sequence[str]) -> None:
    """A group of bars with their intervals for each of `names`: one of each of `series` that has a figure."""
    width = 0.8 / len(series)
    for place, (label, figures) in enumerate(series.items()):
        left = (place - (len(series) - 1) / 2) * width
        known = [(i + left, f.value, f.low, f.high) for i, f in enumerate(figures) if f is not None]
        bars = [bar for bar in known if None not in bar]
        if bars:
            at, heights, low, high = (np.array(column) for column in zip(*bars, strict=True))
            reach = np.stack([heights - low, high - heights]).clip(min=0)
            axis.bar(at, heights, width, label=label, yerr=reach, error_kw={"linewidth": 0.7})
    axis.set_xticks(range(len(names)), names)
    axis.grid(axis="y", alpha=0.3)


def write_plots(metrics: Path, directory: Path) -> list[Path]:
    """Draw every metric over steps into `directory/<metric>.png`; returns what was written.

    Training and previews share a picture. What a run did after the checkpoint it later went on from is left
    out. Raises ImportError without matplotlib.
    """
    curves = read_curves(metrics)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for metric in sorted({metric for _, metric in curves}):
        canvas, (axes,) = panels(7.0, 4.0)
        for kind, style in (("train", {"linewidth": 1.0}), ("preview", {"marker": "o", "markersize": 4.0})):
            if (kind, metric) in curves:
                axes.plot(*curves[kind, metric], label=kind, **style)
        axes.set_xlabel("step")
        axes.set_title(metric)
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(directory / f"{metric.replace('/', '-')}.png")
        canvas.savefig(written[-1])
    return written


def read_curves(metrics: Path) -> dict[tuple[str, str], Curve]:
    """(steps, values) by (kind, metric): `train` or `preview`, and the metric's name."""
    kept: list[dict[str, Any]] = []
    for row in _rows(metrics):
        while kept and _place(kept[-1]) >= _place(row):
            kept.pop()
        kept.append(row)
    curves: dict[tuple[str, str], Curve] = {}
    for row in kept:
        for key, value in row.items():
            if key not in ("kind", "step", "minutes"):
                steps, values = curves.setdefault((row["kind"], key), ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def _place(row: dict[str, Any]) -> tuple[int, bool]:
    """Where a row stands in a run that was never interrupted: a preview follows the training of its step."""
    return row["step"], row["kind"] == "preview"


def _rows(metrics: Path) -> list[dict[str, Any]]:
    if not metrics.is_file():
        return []
    rows = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            # the end of a line that a killed process began
            continue
    return rows
