"""Curves of a run as PNG files, one per metric, from its `metrics.jsonl`."""

import json
from pathlib import Path
from typing import Any

Curve = tuple[list[int], list[float]]


def write_plots(metrics: Path, directory: Path) -> list[Path]:
    """Draw every metric over steps into `directory/<metric>.png`; returns what was written.

    Training and previews share a picture. What a run did after the checkpoint it later went on from is left
    out. Raises ImportError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = read_curves(metrics)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for metric in sorted({metric for _, metric in curves}):
        figure = Figure(figsize=(7.0, 4.0), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for kind, style in (("train", {"linewidth": 1.0}), ("preview", {"marker": "o", "markersize": 4.0})):
            if (kind, metric) in curves:
                axes.plot(*curves[kind, metric], label=kind, **style)
        axes.set_xlabel("step")
        axes.set_title(metric)
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(directory / f"{metric.replace('/', '-')}.png")
        figure.savefig(written[-1])
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
