"""A report on one model, made of the rows in a folder: figures as JSON, and a page to read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..files import write_json
from ..plots import panels
from ..scenes.sheet import contact_sheet, enlarged, marked
from .edits import STRENGTHS, variant_of
from .figures import ATTRIBUTES, POLICY_PREFIXES, conditions, figures_of, hops, nested, quantiles
from .intervals import Figure, average
from .measures import plain
from .page import Picture, Section, Table, differences, layout, write_page
from .rows import About, Row, checked_rows
from .streams import StreamSpec, Video, load_video
from .suites import EDIT_KINDS

#: Figures in tables of their own: heading of the table, prefix of the names.
_GROUPS = (
    ("Motions", "motion_by_word."),
    ("Pairs held out of training", "unseen_by_pair."),
    ("Kinds of two objects", "pair_kinds."),
)


def make_report(folder: Path, out_dir: Path | None = None) -> dict[str, Any]:
    """Write `report.json`, `index.html` and the pictures it shows from the rows of `folder`, and kept frames
    where there are some, to `out_dir` or that folder.

    Returns:
        What `report.json` has: figures nested by their dotted names; beside them `intervals` and `n` by
        dotted name, `comparisons`, and what the rows are rows of.

    Raises:
        InputError: no rows, or some of other weights or settings.
    """
    about, rows = checked_rows(folder)
    out_dir = out_dir or folder
    figures = figures_of(rows)
    report = report_of(about, rows, figures)
    pictures = [*_curves(report, out_dir), *_hop_curves(rows, out_dir)]
    sheets = _sheets(rows, folder / "streams", out_dir)
    write_json(out_dir / "report.json", report)
    sections = _sections(report, figures)
    sections += [Section("", [Picture(name)]) for name in pictures]
    sections += [Section(name.removesuffix(".png").replace("-", " "), [Picture(name)]) for name in sheets]
    sections.append(Section("Settings", [json.dumps(about.sampling), json.dumps(about.config)]))
    write_page(out_dir / "index.html", f"evaluation of {about.model}", sections)
    return report


def report_of(about: About, rows: Sequence[Row], figures: Mapping[str, Figure]) -> dict[str, Any]:
    """The report of rows as JSON values."""
    report = nested({name: figure.value for name, figure in figures.items()})
    known = {name: figure for name, figure in figures.items() if figure.value is not None}
    for suite, name in (("drift", "drift"), ("long_drift", "drift_long")):
        own = [row for row in rows if (row.source, row.suite) == ("model", suite)]
        report[name]["points"] = _points(own)
    found: dict[str, Any] = plain(
        {
            "model": about.model,
            "digest": about.weights,
            "settings": about.sampling,
            "settings_digest": about.settings,
            "config": about.config,
            **report,
            "hops": {name: quantiles(values) for name, values in hops(rows).items()},
            "intervals": {name: [figure.low, figure.high] for name, figure in known.items()},
            "n": {name: figure.n for name, figure in figures.items()},
            "comparisons": conditions(rows),
        }
    )
    return found


def _points(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The mean over streams of each stretch, by attribute, with the interval of all four together."""
    points = []
    for column in zip(*(row.read["points"] for row in rows), strict=True):
        names = (*ATTRIBUTES, "seconds", "sharpness", "speed", "objects")
        point = {name: sum(p[name] for p in column) / len(column) for name in names}
        accuracy = average([sum(p[name] for name in ATTRIBUTES) / len(ATTRIBUTES) for p in column])
        colour = [sum(p["mean_color"][i] for p in column) / len(column) for i in range(3)]
        bounds = [accuracy.low, accuracy.high]
        points.append({**point, "accuracy": accuracy.value, "interval": bounds, "mean_color": colour})
    return points


def _sections(report: Mapping[str, Any], figures: Mapping[str, Figure]) -> list[Section]:
    truth = "control.truth."
    headlines = Table(
        ["figure", "found", "aim", "the world's own clips"],
        [
            [title, figures.get(name), aim, figures.get(truth + name)]
            for title, name, aim in layout()["headlines"]
        ],
    )
    shuffled = [[n.split(".")[2], figures[n]] for n in figures if n.startswith("control.shuffled.")]
    switches = [
        [policy, *(figures[prefix + name] for name in ("switch_soon", "switch_success", "switch_kept"))]
        for policy, prefix in POLICY_PREFIXES.items()
    ]
    kinds = [
        [f"{name.split('.')[-2]}, {policy}", figures[name], figures[name.replace("success", "kept")]]
        for policy, prefix in (*POLICY_PREFIXES.items(), ("truth", truth))
        for name in figures
        if name.startswith(f"{prefix}switch_kinds.") and name.endswith("success")
    ]
    hop_rows = [[policy, *values.values()] for policy, values in report["hops"].items()]
    drift = [
        [f"{seconds} s, {name}", figures[f"{key}.{name}.start"], figures[f"{key}.{name}.end"]]
        for key, seconds in (("drift", 60), ("drift_long", 240))
        for name in ATTRIBUTES
    ]
    groups = [
        Section(
            title,
            [
                Table(
                    ["", "found", "the world's own clips"],
                    [
                        [n.removeprefix(prefix), figures[n], figures.get(truth + n)]
                        for n in figures
                        if n.startswith(prefix)
                    ],
                )
            ],
        )
        for title, prefix in _GROUPS
    ]
    return [
        Section(
            "",
            [
                f"Weights {report['digest']}, settings {report['settings_digest'][:16]}.",
                "Every figure is read from decoded frames: value, 95 % interval, number of streams. The "
                "world's own clips tell what the measures themselves are worth.",
                headlines,
            ],
        ),
        Section("Held against other streams' prompts", [Table(["", "found"], shuffled)]),
        *groups,
        Section("Switches", [Table(["", "shown in 1 s", "shown in 1.5 s", "the rest kept"], switches)]),
        Section("Switches by what changes", [Table(["", "shown in 1.5 s", "the rest kept"], kinds)]),
        Section(
            "Hop at a switch: pixels of 64 per frame above the own step, at quantiles",
            [Table(["", ".5", ".75", ".9", ".95", "largest"], hop_rows)],
        ),
        *_edit_sections(figures),
        Section("Drift by attribute", [Table(["", "first 4 s", "last 4 s"], drift)]),
        Section("The same streams under two conditions", [differences(report["comparisons"])]),
    ]


def _edit_sections(figures: Mapping[str, Figure]) -> list[Section]:
    """Live input made anew, by strength; none where nothing was."""
    rows = []
    for variant in map(variant_of, STRENGTHS):
        kinds = [figures.get(f"edits.{variant}.{kind}.right") for kind in EDIT_KINDS]
        rest = [figures[f"edits.{variant}.{name}"] for name in ("path_error", "kept_psnr", "seam")]
        if rest[0].n:
            rows.append([f"{int(variant) / 100:g}", *kinds, *rest])
    if not rows:
        return []
    head = ["strength", *(f"{kind} right" for kind in EDIT_KINDS), "path error", "background, dB", "seam"]
    text = (
        "Clips of the world as live input, one thing of them to change (aims at the best strength: colour at "
        "least .80, the path within .08 of the width, the background 25 dB). At strength 1 the input is not "
        "seen: what chance is worth."
    )
    return [Section("Live input made anew", [text, Table(head, rows)])]


def _curves(report: Mapping[str, Any], out_dir: Path) -> list[str]:
    """Curves over the length of long streams, one picture for each length."""
    names = []
    for key in ("drift", "drift_long"):
        points = report[key]["points"]
        if not points:
            continue
        canvas, axes = panels(12, 2.6, 5)
        seconds = [point["seconds"] for point in points]
        for name in ATTRIBUTES:
            axes[0].plot(seconds, [point[name] for point in points], label=name)
        axes[0].legend(fontsize=6)
        axes[0].set_title("shares that are right")
        for axis, value in zip(axes[1:4], ("sharpness", "speed", "objects"), strict=True):
            axis.plot(seconds, [point[value] for point in points])
            axis.set_title(value)
        for channel, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            axes[4].plot(seconds, [point["mean_color"][channel] for point in points], colour)
        axes[4].set_title("mean colour")
        for axis in axes:
            axis.set_xlabel("seconds")
            axis.set_ylim(bottom=0)
        names.append(f"{key.replace('_', '-')}-curves.png")
        canvas.savefig(out_dir / names[-1])
    return names


def _hop_curves(rows: Sequence[Row], out_dir: Path) -> list[str]:
    """Which share of the switches hops at most so far, by policy."""
    found = hops(rows)
    if not found:
        return []
    canvas, (axis,) = panels(6, 3)
    for name, values in found.items():
        heights = [(i + 1) / len(values) for i in range(len(values))]
        axis.step([0.0, *values], [0.0, *heights], where="post", label=f"{name} ({len(values)})")
    axis.set_xlabel("hop at a switch, pixels of 64 per frame above the own step")
    axis.set_ylabel("share of switches")
    axis.set_ylim(0, 1)
    axis.legend(fontsize=7)
    canvas.savefig(out_dir / "hops.png")
    return ["hops.png"]


def kept_video(row: Row, streams: Path) -> Video | None:
    """The frames of a row, None where they were not kept, or are gone."""
    if row.stream is None or not (streams / row.stream).is_file():
        return None
    spec = StreamSpec(row.suite, row.prompt, row.seed, 0, (), variant=row.variant, kind=row.kind)
    try:
        return load_video(spec, streams / row.stream)
    except SafetensorError:
        return None


def _sheets(rows: Sequence[Row], streams: Path, out_dir: Path) -> list[str]:
    """A contact sheet for each suite and variant of which frames were kept."""
    found: dict[str, list[tuple[Row, Video]]] = {}
    for row in rows:
        video = kept_video(row, streams)
        if video is not None:
            found.setdefault(f"{row.suite} {row.variant}".removesuffix(" plain"), []).append((row, video))
    names = []
    for title, some in sorted(found.items()):
        # rows come in the order in which they were done
        some.sort(key=lambda pair: pair[0].seed)
        captions = [row.prompt + (f"\n->  {row.then}" if row.then else "") for row, _ in some]
        names.append(f"{title.replace(' ', '-').replace('_', '-')}.png")
        contact_sheet([_marked(video) for _, video in some], captions, out_dir / names[-1], frames=12)
    return names


def _marked(video: Video) -> Tensor:
    """The frames at twice their size, with a cross where a dragged object should be."""
    places = torch.full((len(video.frames), 2), torch.nan)
    shown = places[video.event : video.event + len(video.path)]
    shown.copy_(video.path[: len(shown)])
    return enlarged(marked(video.frames, places))
