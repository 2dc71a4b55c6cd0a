"""Figures of rendered videos: does a stream show what it was told, follow drags, switch and stay itself.

All measures look at frames through `reading` and `classifiers` alone, and treat clips of the world itself
(the control on the truth) and streams of a model alike.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from ..scenes import SceneConfig
from .classifiers import MOTION_FRAMES, MotionReader, ShapeReader
from .reading import MIN_AREA, FrameReader, Reading, torus_apart, torus_centres
from .streams import Subject, Video
from .suites import FPS, RELEASE_FRAMES, SOON_FRAMES, SWITCH_FRAMES

ATTRIBUTES = ("color", "shape", "motion", "background")
#: Colour and shape right in the same frame: what a pair of both is.
PAIR = "color_and_shape"
#: Where a dragged object cannot be seen, it counts as this far away (of the width).
LOST = 0.5
#: A kept background is at least this like itself across a switch, in dB.
KEPT_PSNR = 25.0
#: A kept position moves at most so many of its own steps, which count as at least `_LEAST_STEP` (of the
#: width: a pixel of 64 to either side is what reading a changing shape is worth).
KEPT_STEPS = 2.0
_LEAST_STEP = 1 / 64
#: By which share an object's area may differ from that before a switch, or from that `_SETTLED` frames after
#: it, for its centre to be trusted.
_AREA_CHANGE, _AREA_CHANGE_SETTLED = 0.3, 0.2
#: Frames before and after a switch that are looked at, and frames until all has come about.
_AROUND, _SETTLED = 16, 8
#: Of the frames that follow a switch's success, so many in so many must show it.
_LASTING, _LASTING_RIGHT = 9, 7
#: Frames between two looks at shapes.
_LOOK = 4


@dataclass(frozen=True)
class View:
    """A video and what is read from it."""

    video: Video
    reading: Reading


class Instruments:
    """The readers, made once."""

    def __init__(self, config: SceneConfig) -> None:
        self.frames = FrameReader(config)
        self.shapes = ShapeReader(self.frames, config)
        self.motions = MotionReader(config)

    def view(self, video: Video) -> View:
        """Read all frames of a video."""
        return View(video, self.frames(video.frames))

    def attributes(
        self, view: View, subject: Subject, start: int = 0, stop: int | None = None
    ) -> dict[str, float]:
        """`ATTRIBUTES` and `PAIR`: the share of frames of `[start, stop)` with the subject's colour, shape
        and background, and whether the last `MOTION_FRAMES` of them show its motion.
        """
        stretch = slice(start, len(view.video.frames) if stop is None else stop)
        colours = view.reading.colour()[stretch]
        looks = colours[::_LOOK]
        shapes = self._shapes(view.reading, looks, torch.arange(len(view.video.frames))[stretch][::_LOOK])
        seen = colours[colours >= 0]
        motion = -1
        if len(seen):
            track = view.reading.centre[stretch, int(seen.mode().values)][-MOTION_FRAMES:]
            motion = self.motion(track)
        return {
            "color": _share(colours == subject.colour),
            "shape": _share(shapes == subject.shape),
            "motion": float(motion == subject.motion),
            "background": _share(view.reading.background[stretch] == subject.background),
            PAIR: _share((looks == subject.colour) & (shapes == subject.shape)),
        }

    def motion(self, track: Tensor) -> int:
        """Motion index of positions (MOTION_FRAMES, 2), -1 where they are too few or unseen."""
        return int(self.motions(track[None])[0]) if len(track) == MOTION_FRAMES else -1

    def shape_run(self, view: View, shape: int, colour: int) -> Tensor:
        """(T,) bool: frames in which the object of this colour has this shape."""
        frames = torch.arange(len(view.video.frames))
        return self._shapes(view.reading, torch.full_like(frames, colour), frames) == shape

    def _shapes(self, reading: Reading, colours: Tensor, frames: Tensor) -> Tensor:
        """Shape (N,) of the object of each colour (N,) in each of these frames (N,), -1 for none."""
        shapes = torch.full_like(colours, -1)
        found = colours >= 0
        masks = reading.masks[frames[found], colours[found]]
        shapes[found] = self.shapes(masks, reading.centre[frames[found], colours[found]])
        return shapes


def drag_error(view: View) -> float:
    """Mean distance between object and path while it is dragged, of the width."""
    video = view.video
    centre = view.reading.centre[video.event : video.event + len(video.path), video.spec.subjects[0].colour]
    return float(torus_apart(centre, video.path[: len(centre)]).nan_to_num(LOST).mean())


def released(instruments: Instruments, view: View) -> float:
    """Whether the object goes its own way again after the drag."""
    start = view.video.event + len(view.video.path) + RELEASE_FRAMES
    subject = view.video.spec.subjects[0]
    track = view.reading.centre[start : start + MOTION_FRAMES, subject.colour]
    return float(instruments.motion(track) == subject.motion)


def undragged(instruments: Instruments, view: View) -> float:
    """Whether the second object keeps to its motion from the drag of the first on."""
    subject = view.video.spec.subjects[1]
    track = view.reading.centre[view.video.event : view.video.event + MOTION_FRAMES, subject.colour]
    return float(instruments.motion(track) == subject.motion)


@dataclass(frozen=True)
class SwitchResult:
    """What became of one switch.

    `success` within `SWITCH_FRAMES`, `soon` within `SOON_FRAMES`; `seconds` until then (nan for none, and for
    motions, which take their time to be told apart); `psnr` of the background across the switch (nan where it
    is to change); `kept`: background and position are as before.
    """

    kind: str
    success: bool
    soon: bool
    seconds: float
    psnr: float
    jump: float
    kept: bool


def switch_result(instruments: Instruments, view: View, fps: int = FPS) -> SwitchResult:
    """Judge one switch from the frame of its receipt on."""
    switch, video, reading = view.video.spec.switch, view.video, view.reading
    assert switch is not None
    event, after = video.event, switch.after
    if switch.kind == "motion":
        track = reading.centre[event:, after.colour]
        soon, success = (
            instruments.motion(track[wait : wait + MOTION_FRAMES]) == after.motion
            for wait in (SOON_FRAMES, SWITCH_FRAMES)
        )
        seconds = float("nan")
    else:
        right = {
            "colour": lambda: reading.colour() == after.colour,
            "background": lambda: reading.background == after.background,
            "shape": lambda: instruments.shape_run(view, after.shape, after.colour),
        }[switch.kind]()
        first = _first_lasting(right[event:])
        soon, success, seconds = first <= SOON_FRAMES, first <= SWITCH_FRAMES, first / fps
    jump = _jump(view, switch.kind)
    psnr = float("nan") if switch.kind == "background" else background_psnr(view, event - 1, event)
    kept = jump <= KEPT_STEPS and not psnr < KEPT_PSNR
    return SwitchResult(switch.kind, success, soon, seconds if success else float("nan"), psnr, jump, kept)


def background_psnr(view: View, first: int, second: int) -> float:
    """PSNR in dB between two frames where neither shows an object."""
    objects = view.reading.masks[[first, second]].any(1).any(0)
    free = max_pool2d(objects[None].float(), 5, 1, 2)[0] == 0
    if not bool(free.any()):
        return float("nan")
    a, b = view.video.frames[first][free].float(), view.video.frames[second][free].float()
    return float(10 * torch.log10(255**2 / (a - b).square().mean().clamp(min=1e-3)))


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


@dataclass(frozen=True)
class DriftPoint:
    """One stretch of a long stream."""

    seconds: float
    accuracy: float
    mean_color: tuple[float, float, float]
    sharpness: float
    speed: float
    objects: float


def drift_points(
    instruments: Instruments, view: View, seconds: float = 4.0, fps: int = FPS
) -> list[DriftPoint]:
    """A long stream in stretches of `seconds`: what each shows and how it looks.

    `speed` is how far the object goes, in widths per second; `objects` their mean number.
    """
    length = round(seconds * fps)
    (subject,) = view.video.spec.subjects
    points = []
    for start in range(0, len(view.video.frames) - length + 1, length):
        stop = start + length
        right = instruments.attributes(view, subject, start, stop)
        frames = view.video.frames[start:stop]
        red, green, blue = frames.float().mean((0, 1, 2)).tolist()
        track = view.reading.centre[start:stop, subject.colour]
        steps = torus_apart(track[:-1], track[1:])
        part = Reading(*(values[start:stop] for values in vars(view.reading).values()))
        points.append(
            DriftPoint(
                start / fps,
                sum(right[name] for name in ATTRIBUTES) / len(ATTRIBUTES),
                (red, green, blue),
                float(sharpness(frames[::_LOOK]).mean()),
                float(steps.nanmean()) * fps if not bool(steps.isnan().all()) else 0.0,
                float(count_objects(part).float().mean()),
            )
        )
    return points


def mean_of(rows: Iterable[dict[str, float]], names: Sequence[str] = ATTRIBUTES) -> dict[str, float]:
    """Means by name; nan without rows."""
    kept = list(rows)
    return {name: mean([row[name] for row in kept]) for name in names}


def mean(values: Sequence[float]) -> float:
    """Mean of the numbers that are not nan; nan without any."""
    return float(torch.tensor(values, dtype=torch.float64).nanmean()) if values else math.nan


def _jump(view: View, kind: str) -> float:
    """The fastest step of the object across a switch, in steps of its own: those before it, or where the
    motion is to change and that makes it faster, those after it.

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
        return float("inf")
    steps = torus_apart(centre[frames[:-1]], centre[frames[1:]]) / frames.diff()
    own = max(float(steps[: len(before) - 1].median()), _LEAST_STEP)
    across = steps[len(before) - 1 :]
    if kind == "motion":
        own = max(own, float(across.median()))
    return float(across[:_SETTLED].max()) / own


def _like(area: Tensor, usual: Tensor, change: float) -> Tensor:
    return ((area - usual).abs() <= change * usual) & (area > 0)


def _first_lasting(right: Tensor) -> int:
    """First frame from which the following frames are right nearly always; far away if there is none."""
    if len(right) < _LASTING:
        return 1 << 30
    windows = right.unfold(0, _LASTING, 1).sum(1) >= _LASTING_RIGHT
    good = torch.nonzero(windows & right[: len(windows)])
    return int(good[0]) if len(good) else 1 << 30


def _share(right: Tensor) -> float:
    return float(right.float().mean()) if len(right) else 0.0
