"""The report as people read it: one HTML page with tables, curves and contact sheets."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scenes import contact_sheet
from .runner import Evaluation
from .streams import Video

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .9rem .2rem 0; text-align: left }
 td + td, th + th { text-align: right } img { max-width: 100% } code { background: #f3f3f3 }
"""
#: Name, where it is in the report, target, and whether more is better.
_HEADLINES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("colour", ("color_accuracy",), ">= 0.95"),
    ("background", ("background_accuracy",), ">= 0.95"),
    ("shape", ("shape_accuracy",), ">= 0.85"),
    ("motion", ("motion_accuracy",), ">= 0.85"),
    ("unseen pairs: colour and shape", ("unseen_accuracy",), ">= 0.75"),
    ("drag error, of the width", ("track_error",), "<= 0.06"),
    ("the same without the track", ("track_error_untold",), "> 0.20"),
    ("own motion after a drag", ("release_accuracy",), ""),
    ("motion of the other object, beside a drag", ("undragged_motion", "with_drag"), ""),
    ("the same without the drag", ("undragged_motion", "without"), ""),
    ("switch success within 1.5 s", ("switch_success",), ">= 0.80"),
    ("switch success within 1 s", ("switch_soon",), ">= 0.90"),
    ("seconds to a switch", ("switch_seconds",), ""),
    ("background across a switch, dB", ("switch_kept_psnr",), ">= 25"),
    ("what should stay stayed", ("switch_kept",), ""),
    ("the same under policy clear", ("switch_clear", "switch_kept"), "fails"),
    ("drift: accuracy in the first 4 s", ("drift", "start"), ""),
    ("drift: accuracy in the last 4 s", ("drift", "end"), "within 0.10"),
    ("speed in the last 12 s, of that in the first", ("drift", "speed_kept"), ">= 0.70"),
    ("long drift: last 4 s", ("drift_long", "end"), ""),
    ("tokenizer, dB", ("psnr_tokenizer",), ">= 31"),
    ("tokenizer, moving cells, dB", ("psnr_moving",), ">= 27"),
    ("shapes through the tokenizer", ("shape_through_tokenizer",), ">= 0.97"),
)


def write_report(evaluation: Evaluation, out_dir: Path) -> None:
    """Write `report.json`, `index.html` and the pictures it shows."""
    (out_dir / "report.json").write_text(json.dumps(evaluation.report, indent=1) + "\n", encoding="utf-8")
    sheets = _sheets(evaluation.samples, out_dir)
    plots = _plots(evaluation.report, out_dir)
    (out_dir / "index.html").write_text(_page(evaluation.report, plots, sheets), encoding="utf-8")


def _page(report: Mapping[str, Any], plots: Sequence[str], sheets: Sequence[str]) -> str:
    name = html.escape(str(report["model"]))
    parts = [
        f"<!doctype html><meta charset=utf-8><title>streamgen evaluation: {name}</title>",
        f"<style>{STYLE}</style>",
        f"<h1>Evaluation of {name}</h1>",
        f"<p>Weights <code>{html.escape(str(report['digest']))}</code>. Every figure is read from rendered "
        "frames; the controls tell what the measures themselves are worth.</p>",
        table(["figure", "found", "aim"], [[n, number(_at(report, k)), aim] for n, k, aim in _HEADLINES]),
        "<h2>Controls</h2>",
        table(
            ["measure", "the world's own clips", "shuffled prompts"],
            [
                [key, number(value), number(report["control"]["shuffled"].get(key))]
                for key, value in _flat(report["control"]["truth"])
            ],
        ),
        "<h2>Motions</h2>",
        table(["word", "right"], [[k, number(v)] for k, v in report["motion_by_word"].items()]),
        "<h2>Switches by what changes</h2>",
        table(
            ["kind", "success", "the rest stayed", "streams"],
            [
                [k, number(v["success"]), number(v["kept"]), str(v["n"])]
                for k, v in report["switch_kinds"].items()
            ],
        ),
    ]
    parts += [f'<p><img src="{html.escape(plot)}" alt="curves"></p>' for plot in plots]
    for sheet in sheets:
        title = html.escape(sheet.removesuffix(".png").replace("-", " "))
        parts.append(f'<h2>{title}</h2><p><img src="{html.escape(sheet)}" alt="{title}"></p>')
    counts = ", ".join(f"{key} {value}" for key, value in report["n"].items())
    parts.append(f"<p>Streams or clips measured: {html.escape(counts)}.</p>")
    parts.append(f"<pre>{html.escape(json.dumps(report['settings'], indent=1))}</pre>")
    return "\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of plain text."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def _at(report: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = report
    for key in keys:
        value = value[key]
    return value


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures as (name, value), counts left out."""
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{prefix}{key} ")
        elif key != "n":
            out.append((f"{prefix}{key}", value))
    return out


def number(value: Any) -> str:
    """A figure as a cell shows it."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _plots(report: Mapping[str, Any], out_dir: Path) -> list[str]:
    """Curves over the length of long streams, one picture for each length."""
    from matplotlib.figure import Figure

    names = []
    for key in ("drift", "drift_long"):
        points = report[key]["points"]
        if not points:
            continue
        figure = Figure(figsize=(10, 2.6), layout="constrained")
        axes = figure.subplots(1, 5)
        seconds = [point["seconds"] for point in points]
        for axis, value in zip(axes, ("accuracy", "sharpness", "speed", "objects"), strict=False):
            axis.plot(seconds, [point[value] for point in points])
            axis.set_title(value)
            axis.set_ylim(bottom=0)
        for channel, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            axes[4].plot(seconds, [point["mean_color"][channel] for point in points], colour)
        axes[4].set_title("mean colour")
        for axis in axes:
            axis.set_xlabel("seconds")
        names.append(f"{key.replace('_', '-')}-curves.png")
        figure.savefig(out_dir / names[-1], dpi=110)
    return names


def _sheets(samples: Mapping[str, Sequence[Video]], out_dir: Path) -> list[str]:
    names = []
    for suite, videos in samples.items():
        captions = [
            video.spec.prompt + (f"\n->  {video.spec.switch.prompt}" if video.spec.switch else "")
            for video in videos
        ]
        names.append(f"{suite.replace(' ', '-')}.png")
        contact_sheet([_marked(video) for video in videos], captions, out_dir / names[-1], frames=12)
    return names


def _marked(video: Video) -> Tensor:
    """The frames at twice their size, with a cross where a dragged object should be."""
    frames = video.frames.clone()
    side = torch.tensor([frames.shape[2], frames.shape[1]])
    for frame, point in zip(frames[video.event :], video.path, strict=False):
        column, row = (point * side).long().clamp(min=2).minimum(side - 3).tolist()
        frame[row, column - 2 : column + 3] = 0
        frame[row - 2 : row + 3, column] = 0
    return frames.repeat_interleave(2, 1).repeat_interleave(2, 2)
