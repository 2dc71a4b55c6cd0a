"""Ways from words to words beside each other: the same switches, once under each way, compared in pairs.

All streams of a switch are forks of one, so that they are the same up to the frame where they part. What is
read: whether the object stays what it was while the words change, when the new words have come about, and
whether chunks can be told apart.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from streamgen import Session, StreamEvent, load_pipeline
from streamgen.errors import InputError
from streamgen.interpolate import Way

from ..command import say
from ..files import write_json
from ..scenes import MOTIONS, SceneConfig
from . import intervals
from .classifiers import MOTION_FRAMES
from .intervals import Figure, paired_marks
from .measures import Instruments, View, background_psnr, count_objects, first_lasting, plain, seam
from .page import Part, Section, Table, differences, write_page
from .pool import each, once, one_thread
from .streams import StreamSpec, Video
from .suites import FPS, SWITCH_FRAMES, EvaluationConfig, SuiteBuilder

#: At once is the way of no way.
AT_ONCE = "at once"
#: What each figure is.
FIGURES: Mapping[str, str] = {
    "identity": "frames, from the way's first to 1.5 s behind it, with one object that has what was to stay",
    "success": "streams in which the new words have come about by then",
    "seconds": "time to the new words; where they do not come about, all of the time there is",
    "seam": "how much larger the step into a chunk is than those inside chunks, of 255",
    "jump": "the largest step from frame to frame on the way, of 255",
    "psnr": "background before the way and behind it, dB, where it is to stay",
}
Marks = dict[str, float | None]


@dataclass(frozen=True)
class Asked:
    """What every process works with: the model, the ways, the seconds that each takes, and the readers."""

    model: str
    settings: Mapping[str, Any]
    ways: tuple[str, ...]
    seconds: float
    instruments: Instruments


def compare_ways(
    model: str,
    config: EvaluationConfig,
    ways: Sequence[str],
    seconds: float,
    out_dir: Path,
    settings: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """`config.switches` switches of the suite `switches` under each of two or more ways (`linear`,
    `spherical`, `at once`) that take so many seconds, each compared with the first; what is done already is
    kept.

    Returns:
        Under `ways` the figures of each by name, under `compared` the paired comparisons; the same as
        `transitions.json` and a page.

    Raises:
        InputError: fewer than two ways, or one that is not known.
    """
    known = (*get_args(Way), AT_ONCE)
    for way in ways:
        if way not in known:
            raise InputError(f"--ways: expected some of {', '.join(known)}, found {way!r}")
    if len(set(ways)) < 2 or len(set(ways)) != len(ways):
        raise InputError(f"--ways: expected two or more, each once, found {', '.join(ways)}")
    out_dir.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(model)
    given = dict(settings or {})
    specs = SuiteBuilder(config, pipeline.vocabulary).switches("recache")
    if not specs:
        raise InputError("switches: expected at least 1, found 0")
    file, rows = _kept(out_dir, [pipeline.digest, given, list(ways), seconds, config.what])
    missing = [spec for spec in specs if str(spec.seed) not in rows]
    if missing:
        with one_thread():
            instruments = Instruments(SceneConfig(size=pipeline.geometry.height))
        asked = Asked(model, given, tuple(ways), seconds, instruments)
        for done, (seed, kind, marks) in enumerate(each(asked, _one, missing, processes), 1):
            rows[str(seed)] = {"kind": kind, "marks": marks}
            part = file.with_suffix(".part")
            part.write_text(json.dumps(rows) + "\n", encoding="utf-8")
            part.replace(file)
            say(f"{done} of {len(missing)} switches")
    found = [rows[str(spec.seed)]["marks"] for spec in specs]
    return _report(found, ways, seconds, out_dir)


def _kept(out_dir: Path, about: list[Any]) -> tuple[Path, dict[str, Any]]:
    file = out_dir / "transition-rows.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"about": about}
    if rows["about"] != json.loads(json.dumps(about)):
        raise InputError(f"{file}: expected rows of these weights, ways and settings, found others")
    return file, rows


def _one(asked: Asked, spec: StreamSpec) -> tuple[int, str, dict[str, Marks]]:
    """One switch under each way."""
    assert spec.switch is not None
    pipeline = once("pipeline", lambda: load_pipeline(asked.model))
    over = round(asked.seconds * FPS)
    tail = MOTION_FRAMES if spec.switch.kind == "motion" else SWITCH_FRAMES
    first = pipeline.open(spec.prompt, spec.seed, settings=dict(asked.settings))
    before = _play(first, [], spec.switch.start)
    made = {}
    for way in asked.ways:
        video = _behind(first.fork(), before, spec, way, asked.seconds, over + tail)
        made[way] = marks_of(asked.instruments, asked.instruments.view(video), over)
    return spec.seed, spec.switch.kind, made


def _play(session: Session, parts: list[Tensor], frames: int) -> list[Tensor]:
    while sum(map(len, parts)) < frames:
        parts.append(next(session).frames)
    return parts


def _behind(
    session: Session, before: list[Tensor], spec: StreamSpec, way: str, seconds: float, frames: int
) -> Video:
    """The stream with its words changed in one way, until `frames` behind the receipt's frame."""
    assert spec.switch is not None
    over = None if way == AT_ONCE else {"seconds": seconds, "way": way}
    receipt = session.submit(StreamEvent(prompt=spec.switch.prompt, over=over))
    event = sum(map(len, before))
    parts = _play(session, list(before), event + frames)
    assert receipt.frame == event, "submitted before the chunk of that frame has begun"
    borders, place = [], 0
    for part in parts[:-1]:
        place += len(part)
        borders.append(place)
    spec = replace(spec, frames=event + frames, variant=way)
    return Video(spec, torch.cat(parts)[: spec.frames].cpu(), event, torch.zeros(0, 2), tuple(borders))


def marks_of(instruments: Instruments, view: View, over: int) -> Marks:
    """The numbers of `FIGURES` of one stream whose words change from its event on over so many frames."""
    switch, video = view.video.spec.switch, view.video
    assert switch is not None
    event, stop = video.event, video.event + over + SWITCH_FRAMES
    shown = _shown_after(instruments, view, over)
    longest = over + SWITCH_FRAMES
    way = replace(video, frames=video.frames[event - 1 : event + over])
    way = replace(way, borders=tuple(b - event + 1 for b in video.borders if event <= b < event + over))
    steps = way.frames.float().diff(dim=0).abs().mean((1, 2, 3))
    stays = switch.kind != "background"
    made: Marks = {
        "identity": float(_same(instruments, view)[event:stop].float().mean()),
        "success": float(shown is not None),
        "seconds": (longest if shown is None else shown) / FPS,
        "seam": seam(way),
        "jump": float(steps.max()),
        "psnr": background_psnr(view, event - 1, event + over) if stays else None,
    }
    found: Marks = plain(made)
    return found


def _same(instruments: Instruments, view: View) -> Tensor:
    """(T,) bool: there is one object, and it has the colour and the shape that were to stay."""
    (subject,), switch = view.video.spec.subjects, view.video.spec.switch
    assert switch is not None
    colours = view.reading.colour()
    right = count_objects(view.reading, 1) == 1
    if switch.kind != "colour":
        right &= colours == subject.colour
    if switch.kind != "shape":
        right &= instruments.shapes_shown(view) == subject.shape
    return right


def _shown_after(instruments: Instruments, view: View, over: int) -> int | None:
    """Frames until the new words have come about, within `SWITCH_FRAMES` behind the way; None: they have
    not. A motion is known by the frames behind the way, so it counts as come about with its end.
    """
    switch, event = view.video.spec.switch, view.video.event
    assert switch is not None
    after = switch.after
    if switch.kind == "motion":
        track = view.reading.centre[event + over : event + over + MOTION_FRAMES, after.colour]
        return over if instruments.motion(track) == MOTIONS[after.motion] else None
    right = instruments.right(view, switch.kind, after)
    return first_lasting(right[event : event + over + SWITCH_FRAMES])


def _report(
    marks: Sequence[Mapping[str, Marks]], ways: Sequence[str], seconds: float, out_dir: Path
) -> dict[str, Any]:
    figures = {way: {name: _figure(name, marks, way) for name in FIGURES} for way in ways}
    compared = [
        {"figure": name, "against": f"{way} against {ways[0]}"} | vars(found)
        for way in ways[1:]
        for name in FIGURES
        if (found := paired_marks(*(_marks(name, marks, one) for one in (ways[0], way)))) is not None
    ]
    report = {
        "switches": len(marks),
        "over_seconds": seconds,
        "ways": {way: {name: vars(figure) for name, figure in row.items()} for way, row in figures.items()},
        "compared": compared,
    }
    write_json(out_dir / "transitions.json", report)
    table = Table(["", *ways], [[name, *(figures[way][name] for way in ways)] for name in FIGURES])
    what = [f"{name}: {text}." for name, text in FIGURES.items()]
    told: list[Part] = [f"{len(marks)} switches over {seconds:g} s, each once under every way.", *what, table]
    write_page(
        out_dir / "index.html",
        "ways from words to words",
        [Section("", told), Section("Compared in pairs", [differences(compared)])],
    )
    return report


def _figure(name: str, marks: Sequence[Mapping[str, Marks]], way: str) -> Figure:
    values = [value for value in _marks(name, marks, way).values() if value is not None]
    return intervals.share(values) if name in ("identity", "success") else intervals.average(values)


def _marks(name: str, marks: Sequence[Mapping[str, Marks]], way: str) -> dict[int, float | None]:
    return {place: row[way][name] for place, row in enumerate(marks)}
