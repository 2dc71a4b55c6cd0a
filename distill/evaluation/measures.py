"""What is read from the decoded frames of a video, as plain values: what a row of a report keeps.

All measures look at frames through `reading` and `classifiers` alone, and treat clips of the world itself
(the control on the truth) and streams of a model alike. What was expected plays no part here, but for where
to look: at which object, and around which frame.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from ..command import say
from ..scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SceneConfig
from .classifiers import MOTION_FRAMES, MotionReader, ShapeReader, read_learned, write_learned
from .reading import MIN_AREA, FrameReader, Reading, torus_apart, torus_centres
from .streams import Subject, Video
from .suites import FPS, LASTING_FRAMES, RELEASE_FRAMES, SOON_FRAMES, SWITCH_FRAMES

#: A report's rows are of one revision; another one reads something else from the same frames.
REVISION = 2
#: Where a dragged object cannot be seen, it counts as this far away (of the width).
LOST = 0.5
#: A step counts as at least this (of the width: a pixel of 64 to either side is what reading a changing shape
#: is worth).
_LEAST_STEP = 1 / 64
#: By which share an object's area may differ from that before a switch, or from that `_SETTLED` frames after
#: it, for its centre to be trusted.
_AREA_CHANGE, _AREA_CHANGE_SETTLED = 0.3, 0.2
#: Frames before and after a switch that are looked at, and frames until all has come about.
_AROUND, _SETTLED = 16, 8
#: Of the `LASTING_FRAMES` that follow a switch's success, so many must show it.
_LASTING_RIGHT = 7
#: Frames between two looks at shapes.
_LOOK = 4
Read = dict[str, Any]


@dataclass(frozen=True)
class View:
    """A video and what is read from it."""

    video: Video
    reading: Reading


class Instruments:
    """The readers of a world, made once; they can be sent to other processes. What they learn, half a minute
    of a core, a file `kept` keeps; it is written where it is not there yet.

    Raises:
        InputError: `kept` is of another world, or no such file.
    """

    def __init__(self, config: SceneConfig, kept: Path | None = None) -> None:
        known = read_learned(kept, config) if kept is not None and kept.exists() else {}
        if not known:
            say("learning to read shapes and motions")
        self.frames = FrameReader(config)
        self.shapes = ShapeReader(self.frames, config, learned=known.get("shapes"))
        self.motions = MotionReader(config, learned=known.get("motions"))
        if kept is not None and not known:
            write_learned(kept, config, {"shapes": self.shapes.network, "motions": self.motions.network})

    def view(self, video: Video) -> View:
        """Read all frames of a video."""
        return View(video, self.frames(video.frames))

    def shown(self, view: View, start: int = 0, stop: int | None = None) -> Read:
        """What frames `[start, stop)` show, as if of one object: under `colour`, `shape`, `look` (both in the
        same frame) and `background` the share of frames by word, and the word of the `motion` in the last
        `MOTION_FRAMES` of them; where nothing is seen the shares sum to less than 1, and the motion is None.
        """
        stretch = slice(start, len(view.video.frames) if stop is None else stop)
        colours = view.reading.colour()[stretch]
        looks = colours[::_LOOK]
        shapes = self._shapes(view.reading, looks, torch.arange(len(view.video.frames))[stretch][::_LOOK])
        seen = colours[colours >= 0]
        motion = None
        if len(seen):
            motion = self.motion(view.reading.centre[stretch, int(seen.mode().values)][-MOTION_FRAMES:])
        pairs = [
            f"{COLOURS[colour]} {SHAPES[shape]}" if min(colour, shape) >= 0 else None
            for colour, shape in zip(looks.tolist(), shapes.tolist(), strict=True)
        ]
        return {
            "colour": _shares(_named(colours, COLOURS)),
            "shape": _shares(_named(shapes, SHAPES)),
            "look": _shares(pairs),
            "background": _shares(_named(view.reading.background[stretch], BACKGROUNDS)),
            "motion": motion,
        }

    def object(self, view: View, subject: Subject, start: int, stop: int) -> Read:
        """What is seen of an object of the subject's colour in frames `[0, stop)`: in which share of them it
        is `found`, its `shape`s, and its `motion` from frame `start` on.
        """
        frames = torch.arange(0, stop, _LOOK)
        shapes = self._shapes(view.reading, torch.full_like(frames, subject.colour), frames)
        track = view.reading.centre[start : start + MOTION_FRAMES, subject.colour]
        return {
            "found": _share(view.reading.found(subject.colour)[:stop]),
            "shape": _shares(_named(shapes, SHAPES)),
            "motion": self.motion(track),
        }

    def motion(self, track: Tensor) -> str | None:
        """The motion word of positions (MOTION_FRAMES, 2), None where they are too few or unseen."""
        found = int(self.motions(track[None])[0]) if len(track) == MOTION_FRAMES else -1
        return MOTIONS[found] if found >= 0 else None

    def right(self, view: View, name: str, subject: Subject) -> Tensor:
        """(T,) bool: frames whose colour, shape or background, as `name` says, is the subject's."""
        if name == "shape":
            return self.shape_run(view, subject.shape, subject.colour)
        if name == "colour":
            return view.reading.colour() == subject.colour
        return view.reading.background == subject.background

    def shape_run(self, view: View, shape: int, colour: int) -> Tensor:
        """(T,) bool: frames in which the object of this colour has this shape."""
        frames = torch.arange(len(view.video.frames))
        return self._shapes(view.reading, torch.full_like(frames, colour), frames) == shape

    def shapes_shown(self, view: View) -> Tensor:
        """(T,) the shape of the object that covers most, -1 where there is none."""
        frames = torch.arange(len(view.video.frames))
        return self._shapes(view.reading, view.reading.colour(), frames)

    def _shapes(self, reading: Reading, colours: Tensor, frames: Tensor) -> Tensor:
        """Shape (N,) of the object of each colour (N,) in each of these frames (N,), -1 for none."""
        shapes = torch.full_like(colours, -1)
        found = colours >= 0
        masks = reading.masks[frames[found], colours[found]]
        shapes[found] = self.shapes(masks, reading.centre[frames[found], colours[found]])
        return shapes


def read_video(instruments: Instruments, video: Video) -> Read:
    """What the frames of a video of any suite show, as JSON values; None for numbers that are not there."""
    view = instruments.view(video)
    found: Read = plain(_READERS[video.spec.suite](instruments, view))
    return found


def plain(value: Any) -> Any:
    """A value as JSON has it: no nan and no infinity, but None, and numbers to six digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _read_plain(instruments: Instruments, view: View) -> Read:
    return instruments.shown(view) | {"seam": seam(view.video), "first": _first(instruments, view)}


def _first(instruments: Instruments, view: View) -> Read:
    """What the first frame shows, which no later one can mend: how many `objects`, and `look`, the colour and
    shape of what is read there as one object.
    """
    objects = int(count_objects(view.reading, len(view.video.frames))[0])
    looks = [name for name, share in instruments.shown(view, 0, 1)["look"].items() if share > 0]
    return {"objects": objects, "look": looks[0] if looks else None}


def _read_drag(instruments: Instruments, view: View) -> Read:
    """How far off the object is while it is dragged, of the width, and its motion after that."""
    video, colour = view.video, view.video.spec.subjects[0].colour
    start = video.event + len(video.path) + RELEASE_FRAMES
    track = view.reading.centre[start : start + MOTION_FRAMES, colour]
    return {"event": video.event, "error": drag_error(view), "motion": instruments.motion(track)}


def _read_pair(instruments: Instruments, view: View) -> Read:
    """Both objects up to where their motions can be told, these from the event on."""
    start, stop = view.video.event, view.video.event + MOTION_FRAMES
    objects = [instruments.object(view, subject, start, stop) for subject in view.video.spec.subjects]
    backgrounds = _named(view.reading.background[:stop], BACKGROUNDS)
    return {"event": start, "objects": objects, "background": _shares(backgrounds)}


def _read_drift(instruments: Instruments, view: View) -> Read:
    return {"points": [asdict(p) for p in drift_points(instruments, view)], "seam": seam(view.video)}


def _read_edit(instruments: Instruments, view: View) -> Read:
    """What became of a live input: what is shown, how far the object is from where it is in the input (of the
    width), and how like that its background is, in dB (None where that is to change, or hidden).
    """
    video = view.video
    assert video.source is not None
    (subject,) = video.spec.subjects
    shown = instruments.object(view, subject, 0, len(video.frames))
    psnr = math.nan
    if video.spec.kind != "background":
        psnr = kept_psnr(video.source, video.frames, instruments.frames(video.source), view.reading)
    return {
        "colour": shown["found"],
        "shape": shown["shape"].get(SHAPES[subject.shape], 0.0),
        "background": _share(view.reading.background == subject.background),
        "error": drag_error(view),
        "psnr": psnr,
        "seam": seam(video),
    }


def kept_psnr(source: Tensor, made: Tensor, before: Reading, after: Reading) -> float:
    """PSNR in dB between two clips where neither shows an object, over all frames."""
    free = before.ground() & after.ground()
    return _psnr(source[free], made[free])


def drag_error(view: View) -> float:
    """Mean distance between object and path while it is dragged, of the width."""
    video = view.video
    centre = view.reading.centre[video.event : video.event + len(video.path), video.spec.subjects[0].colour]
    return float(torus_apart(centre, video.path[: len(centre)]).nan_to_num(LOST).mean())


def read_switch(instruments: Instruments, view: View) -> Read:
    """What became of one switch from the frame of its receipt on.

    `shown_after` frames what should change has changed to stay (None: never; for motions, which take their
    time to be told apart, the words of the motion after `SOON_FRAMES` and `SWITCH_FRAMES` instead); `psnr` of
    the background across the switch, in dB (None where it is to change or hidden); `hop` the fastest step of
    the object across the switch and `step` what it goes in a frame otherwise, in pixels of 64 (None where it
    cannot be read).
    """
    switch, event = view.video.spec.switch, view.video.event
    assert switch is not None
    after = switch.after
    found: Read = {"event": event, "shown_after": None}
    if switch.kind == "motion":
        track = view.reading.centre[event:, after.colour]
        for name, wait in (("motion_soon", SOON_FRAMES), ("motion_late", SWITCH_FRAMES)):
            found[name] = instruments.motion(track[wait : wait + MOTION_FRAMES])
    else:
        found["shown_after"] = first_lasting(instruments.right(view, switch.kind, after)[event:])
    fastest, step = hop(view, switch.kind)
    psnr = math.nan if switch.kind == "background" else background_psnr(view, event - 1, event)
    return found | {"psnr": psnr, "hop": fastest * 64, "step": step * 64}


def background_psnr(view: View, first: int, second: int) -> float:
    """PSNR in dB between two frames where neither shows an object."""
    return _psnr(*shared_ground(view, first, second))


def shared_ground(view: View, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3) of two frames at the places where neither shows an object."""
    ground = [view.reading.part(frame, frame + 1).ground()[0] for frame in (first, second)]
    free = ground[0] & ground[1]
    return view.video.frames[first][free], view.video.frames[second][free]


def _psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of pixels of 255; nan without any."""
    apart = (a.float() - b.float()).square().mean()
    return float(10 * torch.log10(255**2 / apart.clamp(min=1e-3)))


def count_objects(reading: Reading, every: int = 8) -> Tensor:
    """Objects (N,) in every `every`-th frame: connected areas on the torus that are large enough."""
    masks = reading.masks[::every].any(1)
    count, height, width = masks.shape
    labels = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width) * masks
    for _ in range(height + width):
        spread = max_pool2d(pad(labels[:, None], (1, 1, 1, 1), mode="circular"), 3, 1)[:, 0] * masks
        if torch.equal(spread, labels):
            break
        labels = spread
    least = MIN_AREA * height * width / 4096
    return torch.tensor(
        [int((frame[frame > 0].unique(return_counts=True)[1] >= least).sum()) for frame in labels]
    )


def sharpness(frames: Tensor) -> Tensor:
    """Mean absolute Laplacian (T,) of the grey pictures (T, H, W, 3), of 255."""
    grey = frames.float().mean(-1)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * inner).abs().mean((1, 2))


def seam(video: Video) -> float:
    """How much larger the step into the first frame of a chunk is than the steps inside chunks, in levels of
    255: about 0 where nobody could tell where chunks begin; nan for a video of one chunk.
    """
    frames = video.frames
    steps = torch.cat([part.float().diff(dim=0).abs().mean((1, 2, 3)) for part in _overlapping(frames)])
    border = torch.zeros(len(steps), dtype=torch.bool)
    border[torch.tensor([b - 1 for b in video.borders if b < len(frames)], dtype=torch.long)] = True
    return float(steps[border].mean() - steps[~border].mean())


def _overlapping(frames: Tensor, length: int = 256) -> list[Tensor]:
    """Stretches of frames, each beginning with the last one of that before it."""
    return [frames[start : start + length + 1] for start in range(0, len(frames) - 1, length)]


@dataclass(frozen=True)
class DriftPoint:
    """One stretch of a long stream: shares of frames that are right, by attribute, and how it looks."""

    seconds: float
    color: float
    shape: float
    motion: float
    background: float
    mean_color: tuple[float, float, float]
    sharpness: float
    speed: float
    objects: float


def drift_points(
    instruments: Instruments, view: View, seconds: float = 4.0, fps: int = FPS
) -> list[DriftPoint]:
    """A long stream, or what follows its switch, in stretches of `seconds`: what each shows and how it looks.

    `speed` is how far the object goes, in widths per second; `objects` their mean number.
    """
    length = round(seconds * fps)
    (subject,) = view.video.spec.subjects
    first = 0 if view.video.spec.switch is None else view.video.event + SWITCH_FRAMES
    points = []
    for start in range(first, len(view.video.frames) - length + 1, length):
        stop = start + length
        shown = instruments.shown(view, start, stop)
        frames = view.video.frames[start:stop]
        red, green, blue = frames.float().mean((0, 1, 2)).tolist()
        track = view.reading.centre[start:stop, subject.colour]
        steps = torus_apart(track[:-1], track[1:])
        points.append(
            DriftPoint(
                start / fps,
                shown["colour"].get(COLOURS[subject.colour], 0.0),
                shown["shape"].get(SHAPES[subject.shape], 0.0),
                float(shown["motion"] == MOTIONS[subject.motion]),
                shown["background"].get(BACKGROUNDS[subject.background], 0.0),
                (red, green, blue),
                float(sharpness(frames[::_LOOK]).mean()),
                float(steps.nanmean()) * fps if not bool(steps.isnan().all()) else 0.0,
                float(count_objects(view.reading.part(start, stop)).float().mean()),
            )
        )
    return points


def hop(view: View, kind: str) -> tuple[float, float]:
    """The fastest step of the object across a switch, and its own step: that before it, or where the motion
    is to change and that makes it faster, that after it; in widths per frame.

    While one thing fades into another an object cannot be read: frames whose area is unlike both that before
    and that some time after are left out, and a step over several frames counts per frame.
    """
    reading, event = view.reading, view.video.event
    first = max(0, event - _AROUND)
    colour, until = view.video.spec.subjects[0].colour, event - first
    masks = reading.masks[first : event + _AROUND]
    # an object that changes colour passes through others
    object_masks = (masks.any(1) if kind == "colour" else masks[:, colour]).float()
    area, centre = object_masks.sum((1, 2)), torus_centres(object_masks)
    readable = _like(area, area[:until].median(), _AREA_CHANGE)
    readable[until:] |= _like(area[until:], area[until + _SETTLED :].median(), _AREA_CHANGE_SETTLED)
    frames = torch.nonzero(readable)[:, 0]
    before = frames[frames < until]
    if len(before) < 2 or len(before) == len(frames):
        return math.nan, math.nan
    steps = torus_apart(centre[frames[:-1]], centre[frames[1:]]) / frames.diff()
    own = max(float(steps[: len(before) - 1].median()), _LEAST_STEP)
    across = steps[len(before) - 1 :]
    if kind == "motion":
        own = max(own, float(across.median()))
    return float(across[:_SETTLED].max()), own


def _like(area: Tensor, usual: Tensor, change: float) -> Tensor:
    return ((area - usual).abs() <= change * usual) & (area > 0)


def first_lasting(right: Tensor) -> int | None:
    """First frame from which the following frames are right nearly always."""
    if len(right) < LASTING_FRAMES:
        return None
    windows = right.unfold(0, LASTING_FRAMES, 1).sum(1) >= _LASTING_RIGHT
    good = torch.nonzero(windows & right[: len(windows)])
    return int(good[0]) if len(good) else None


def _share(right: Tensor) -> float:
    return float(right.float().mean()) if len(right) else 0.0


def _named(indices: Tensor, words: Sequence[str]) -> list[str | None]:
    return [words[index] if index >= 0 else None for index in indices.tolist()]


def _shares(words: Sequence[str | None]) -> dict[str, float]:
    """The share of each word, the most frequent one first."""
    counts = Counter(word for word in words if word is not None)
    return {word: count / len(words) for word, count in counts.most_common()}


_READERS: dict[str, Callable[[Instruments, View], Read]] = {
    "prompts": _read_plain,
    "unseen": _read_plain,
    "drags": _read_drag,
    "pairs": _read_pair,
    "switches": read_switch,
    "drift": _read_drift,
    "long_drift": _read_drift,
    "edits": _read_edit,
}
