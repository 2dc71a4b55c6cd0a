"""Every figure of a report, from its rows alone: values, intervals, and paired comparisons."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import intervals
from .edits import STRENGTHS, variant_of
from .intervals import Figure, Paired
from .rows import Row
from .suites import FPS, SOON_FRAMES, SWITCH_FRAMES
from .tokenizer import tokenizer_figures

#: A kept background is at least this like itself across a switch, in dB.
KEPT_PSNR = 25.0
#: A kept position moves at most so many of its own steps.
KEPT_STEPS = 2.0
ATTRIBUTES = ("color", "shape", "motion", "background")
#: Words of the rows for words of the reports.
_WORDS = {"color": "colour"}
#: Stretches at either end of a long stream whose speeds are compared: 12 seconds.
_ENDS = 3
#: An object is seen and has a shape where that is so in most frames.
_MOST = 0.5
Mark = Callable[[Row], float | None]


@dataclass(frozen=True)
class Metric:
    """One measure of a suite.

    Attributes:
        suite: whose rows.
        mark: the number of one row, None where it has none.
        names: by variant the figure's dotted name in a report; other variants are not measured.
        summary: how the numbers of many rows become a figure.
        by: the name of the same figure for one kind of row, with `{}` for the kind.
    """

    suite: str
    mark: Mark
    names: Mapping[str, str]
    summary: Callable[[Sequence[float]], Figure] = intervals.share
    by: Mapping[str, str] = field(default_factory=dict)

    def figure(self, rows: Iterable[Row]) -> Figure:
        """The figure of some rows of the suite."""
        marks = [self.mark(row) for row in rows]
        return self.summary([mark for mark in marks if mark is not None])


def shown(name: str) -> Mark:
    """The share of frames that show an attribute as expected; for motions whether they do."""

    def mark(row: Row) -> float:
        return right(row, row, name)

    return mark


def right(row: Row, told: Row, name: str) -> float:
    """How right what one row shows would be for what another was told, in [0, 1]."""
    (subject,) = told.expected["subjects"]
    if name == "look":
        return float(row.read["look"].get(f"{subject['colour']} {subject['shape']}", 0.0))
    word = _WORDS.get(name, name)
    if name == "motion":
        return float(row.read["motion"] == subject["motion"])
    return float(row.read[word].get(subject[word], 0.0))


def _of(name: str) -> Mark:
    return lambda row: row.read[name]


def _first_whole(row: Row) -> float:
    """Whether the first frame holds one object, of the colour and shape it was told."""
    (subject,), first = row.expected["subjects"], row.read["first"]
    return float(first["objects"] == 1 and first["look"] == f"{subject['colour']} {subject['shape']}")


def _released(row: Row) -> float:
    return float(row.read["motion"] == row.expected["subjects"][0]["motion"])


def _object(place: int, name: str) -> Callable[[Row], float]:
    """Whether one of several objects is seen, or is seen as expected, for most of the time."""

    def mark(row: Row) -> float:
        seen, told = row.read["objects"][place], row.expected["subjects"][place]
        if name == "motion":
            return float(seen["motion"] == told["motion"])
        part = seen["found"] if name == "color" else seen["shape"].get(told["shape"], 0.0)
        return float(part > _MOST)

    return mark


def _both(row: Row) -> float:
    """Whether both objects have all that was said of them."""
    return min(_object(place, name)(row) for place in (0, 1) for name in ("color", "shape", "motion"))


def _swapped(row: Row) -> float | None:
    """Whether the second object moves as was said of the first; None where both were told the same."""
    one, two = (subject["motion"] for subject in row.expected["subjects"])
    return None if one == two else float(row.read["objects"][1]["motion"] == one)


def _shown_within(frames: int, name: str) -> Mark:
    def mark(row: Row) -> float:
        if row.kind == "motion":
            return float(row.read[name] == row.expected["after"]["motion"])
        return float(row.read["shown_after"] is not None and row.read["shown_after"] <= frames)

    return mark


def _seconds(row: Row) -> float | None:
    frames = row.read["shown_after"]
    return None if frames is None or frames > SWITCH_FRAMES else frames / FPS


def _kept(row: Row) -> float:
    """Whether background and position are as before a switch."""
    read = row.read
    if read["hop"] is None or read["hop"] > KEPT_STEPS * read["step"]:
        return 0.0
    return float(read["psnr"] is None or read["psnr"] >= KEPT_PSNR)


def hop(row: Row) -> float | None:
    """How much faster than in its own steps the object goes at a switch, in pixels of 64 per frame."""
    read = row.read
    return None if read["hop"] is None else max(0.0, float(read["hop"] - read["step"]))


def _at(place: int, name: str) -> Mark:
    """An attribute, or the mean of all, in one stretch of a long stream."""

    def mark(row: Row) -> float:
        point = row.read["points"][place]
        names = ATTRIBUTES if name == "all" else (name,)
        return float(sum(point[part] for part in names) / len(names))

    return mark


def _speeds(row: Row, ends: slice) -> float:
    speeds = [point["speed"] for point in row.read["points"][ends]]
    return float(sum(speeds) / len(speeds))


_PLAIN = {"plain": ""}
#: How the names of figures of switches begin, by policy.
POLICY_PREFIXES = {"recache": "", "keep": "switch_keep.", "clear": "switch_clear."}


def _names(prefixes: Mapping[str, str], name: str) -> dict[str, str]:
    return {variant: prefix + name for variant, prefix in prefixes.items()}


def _plain_metrics() -> list[Metric]:
    found = [
        Metric("prompts", shown(name), _names(_PLAIN, f"{label}_accuracy"))
        for name, label in ((*((a, a) for a in ATTRIBUTES), ("look", "color_and_shape")))
    ]
    motion = next(m for m in found if m.names["plain"] == "motion_accuracy")
    found[found.index(motion)] = replace(motion, by={"plain": "motion_by_word.{}"})
    found.append(
        Metric("unseen", shown("look"), _names(_PLAIN, "unseen_accuracy"), by={"plain": "unseen_by_pair.{}"})
    )
    found += [Metric("unseen", shown(name), _names(_PLAIN, f"unseen.{name}")) for name in ATTRIBUTES]
    found.append(Metric("prompts", _first_whole, _names(_PLAIN, "first_frame_whole")))
    return [*found, Metric("prompts", _of("seam"), _names(_PLAIN, "seam"), intervals.average)]


def _drag_metrics() -> list[Metric]:
    error = {"told": "track_error", "untold": "track_error_untold"}
    found = [
        Metric("drags", _of("error"), error, intervals.average),
        Metric("drags", _released, {"told": "release_accuracy"}),
        Metric("pairs", _both, {"alone": "pairs.both"}, by={"alone": "pair_kinds.{}.both"}),
        Metric("pairs", _swapped, {"alone": "pairs.swapped_motion"}),
    ]
    for place, which in enumerate(("first", "second")):
        for name in ("color", "shape", "motion"):
            by = {"alone": f"pair_kinds.{{}}.{which}_motion"} if name == "motion" else {}
            names = {"alone": f"pairs.{which}.{name}"}
            if (place, name) != (0, "motion"):
                names["dragged"] = f"pairs.beside_drag.{which}.{name}"
            found.append(Metric("pairs", _object(place, name), names, by=by))
    return found


def _switch_metrics() -> list[Metric]:
    kinds = {variant: f"{prefix}switch_kinds.{{}}" for variant, prefix in POLICY_PREFIXES.items()}
    success, soon = _shown_within(SWITCH_FRAMES, "motion_late"), _shown_within(SOON_FRAMES, "motion_soon")

    def by(name: str) -> dict[str, str]:
        return {variant: f"{prefix}.{name}" for variant, prefix in kinds.items()}

    return [
        Metric("switches", success, _names(POLICY_PREFIXES, "switch_success"), by=by("success")),
        Metric("switches", soon, _names(POLICY_PREFIXES, "switch_soon")),
        Metric("switches", _kept, _names(POLICY_PREFIXES, "switch_kept"), by=by("kept")),
        Metric("switches", _seconds, _names(POLICY_PREFIXES, "switch_seconds"), intervals.median),
        Metric("switches", _of("psnr"), _names(POLICY_PREFIXES, "switch_kept_psnr"), intervals.average),
        Metric("switches", hop, _names(POLICY_PREFIXES, "switch_hop"), intervals.average),
    ]


def _drift_metrics() -> list[Metric]:
    found = []
    for suite, name in (("drift", "drift"), ("long_drift", "drift_long")):
        for place, end in ((0, "start"), (-1, "end")):
            found.append(Metric(suite, _at(place, "all"), {"plain": f"{name}.{end}"}))
            found += [Metric(suite, _at(place, a), {"plain": f"{name}.{a}.{end}"}) for a in ATTRIBUTES]
        found.append(Metric(suite, _of("seam"), {"plain": f"{name}.seam"}, intervals.average))
    return found


def _edited(row: Row) -> float:
    """How right what was to change is: the share of frames."""
    return float(row.read[row.kind])


def _edit_metrics() -> list[Metric]:
    prefixes = {variant_of(strength): f"edits.{variant_of(strength)}" for strength in STRENGTHS}

    def names(name: str) -> dict[str, str]:
        return {variant: f"{prefix}.{name}" for variant, prefix in prefixes.items()}

    found = [
        Metric("edits", _edited, names("right"), by=names("{}.right")),
        Metric("edits", _of("error"), names("path_error"), intervals.average, by=names("{}.path_error")),
        Metric("edits", _of("psnr"), names("kept_psnr"), intervals.average),
        Metric("edits", _of("seam"), names("seam"), intervals.average),
    ]
    return found


METRICS: tuple[Metric, ...] = (
    *_plain_metrics(),
    *_drag_metrics(),
    *_switch_metrics(),
    *_drift_metrics(),
    *_edit_metrics(),
)
#: Variants of a suite that are the same streams under two conditions.
CONDITIONS = (
    ("switches", "recache", "keep"),
    ("switches", "recache", "clear"),
    ("switches", "keep", "clear"),
    ("drags", "told", "untold"),
    ("pairs", "alone", "dragged"),
)


def figures_of(rows: Sequence[Row]) -> dict[str, Figure]:
    """All figures of a report's rows by dotted name; those of clips of the world under `control.truth.`."""
    found: dict[str, Figure] = {}
    for source, prefix in (("model", ""), ("truth", "control.truth.")):
        for metric in METRICS:
            for variant, name in metric.names.items():
                own = _of_suite(rows, metric.suite, variant, source)
                found[prefix + name] = metric.figure(own)
                if variant in metric.by:
                    for kind in sorted({row.kind for row in own}):
                        part = metric.figure([row for row in own if row.kind == kind])
                        found[prefix + metric.by[variant].format(kind)] = part
        for suite, name in (("drift", "drift"), ("long_drift", "drift_long")):
            own = _of_suite(rows, suite, "plain", source)
            pairs = [(_speeds(row, slice(_ENDS)), _speeds(row, slice(-_ENDS, None))) for row in own]
            found[f"{prefix}{name}.speed_kept"] = intervals.ratio(pairs)
    coded = [row.read for row in rows if row.suite == "tokenizer"]
    found |= tokenizer_figures(coded) if coded else {}
    return found | _shuffled([row for row in rows if row.source == "model" and row.suite == "prompts"])


def _shuffled(rows: Sequence[Row]) -> dict[str, Figure]:
    """What the measures say where each stream is held against another one's prompt."""
    others = list(zip(rows, [*rows[1:], *rows[:1]], strict=True)) if len(rows) > 1 else []
    return {
        f"control.shuffled.{name}_accuracy": intervals.share([right(a, b, name) for a, b in others])
        for name in ATTRIBUTES
    }


def compared(metric: Metric, first: Iterable[Row], second: Iterable[Row]) -> Paired | None:
    """One measure on the streams that two sets of rows have in common; None without any."""
    return intervals.paired_marks(*({row.pair: metric.mark(row) for row in rows} for rows in (first, second)))


def conditions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The paired comparisons within a report: policies at a switch, with and without a track or a drag."""
    found = []
    for suite, one, two in CONDITIONS:
        first, second = (_of_suite(rows, suite, variant) for variant in (one, two))
        for metric in METRICS:
            if metric.suite != suite or not {one, two} <= set(metric.names):
                continue
            if (result := compared(metric, first, second)) is not None:
                name = metric.names[one].removeprefix(POLICY_PREFIXES.get(one, ""))
                against = f"{one} against {two}"
                found.append({"figure": name, "against": against, **vars(result)})
    return found


def models_compared(first: Sequence[Row], second: Sequence[Row]) -> list[dict[str, Any]]:
    """The paired comparisons of two reports on the prompts and seeds that both have."""
    found = []
    for metric in METRICS:
        for variant, name in metric.names.items():
            own = (_of_suite(rows, metric.suite, variant) for rows in (first, second))
            if (result := compared(metric, *own)) is not None:
                found.append({"figure": name, **vars(result)})
    return found


def _of_suite(rows: Sequence[Row], suite: str, variant: str, source: str = "model") -> list[Row]:
    return [row for row in rows if (row.source, row.suite, row.variant) == (source, suite, variant)]


def quantiles(values: Sequence[float], at: Sequence[float] = (0.5, 0.75, 0.9, 0.95, 1.0)) -> dict[str, float]:
    """Quantiles of numbers by their place, such as `0.9`; none without numbers."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {f"{q:g}": ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] for q in at}


def hops(rows: Sequence[Row]) -> dict[str, list[float]]:
    """The hops at switches by policy, and of the world's own clips, in pixels of 64, sorted."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.suite == "switches" and (value := hop(row)) is not None:
            found.setdefault("truth" if row.source == "truth" else row.variant, []).append(value)
    return {name: sorted(values) for name, values in found.items()}


def nested(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as mappings in mappings."""
    out: dict[str, Any] = {}
    for name, value in figures.items():
        *path, last = name.split(".")
        place = out
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return out
