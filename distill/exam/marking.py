"""Facts held against frames: what is read where a fact says, and whether that is as expected.

All looks at frames go through the readers of the evaluation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..evaluation.classifiers import MOTION_FRAMES
from ..evaluation.measures import (
    LOST,
    Instruments,
    View,
    background_psnr,
    count_objects,
    drift_points,
    first_lasting,
    hop,
    plain,
    shared_ground,
)
from ..evaluation.reading import Reading, torus_apart
from ..evaluation.streams import StreamSpec, Subject, Video
from ..scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from .facts import STRETCH_SECONDS, Fact
from .outlines import without_outlines
from .transcript import Transcript

#: Frames between two looks at what is slow to read.
_LOOK = 4
#: Looks at each of two stretches of frames whose grounds are held against each other.
_LOOKS = 8
#: An object is one of a shape where most looks say so.
_MOST = 0.5
#: Ground that two frames have to show for their likeness to be told, as a share of the frame.
_GROUND = 0.2


@dataclass(frozen=True)
class Mark:
    """What was found of a fact, a number or None where it cannot be seen, and whether that is as expected."""

    found: Any
    right: bool


class Marker:
    """Marks the frames of one video, uint8 (T, H, W, 3), at `fps` frames per second."""

    def __init__(self, instruments: Instruments, frames: Tensor, fps: float) -> None:
        self._instruments, self.fps = instruments, fps
        spec = StreamSpec("", "", 0, len(frames), ())
        self.view = instruments.view(Video(spec, frames, len(frames), torch.zeros(0, 2)))
        # what is read of an object by its colour; where there is any object, its outline is part of it
        self.objects = replace(self.view, reading=without_outlines(self.view.reading))
        self._shapes: dict[tuple[int, int], Tensor] = {}

    def mark(self, fact: Fact) -> Mark:
        """The mark of a fact about these frames; its frames exist."""
        mark = MARKS[fact.kind](self, fact)
        return replace(mark, found=plain(mark.found))

    @property
    def reading(self) -> Reading:
        """What is read of objects by their colours from each frame."""
        return self.objects.reading

    def has_shape(self, colour: str, shape: str) -> Tensor:
        """(T,) bool: the object of this colour has this shape."""
        key = (SHAPES.index(shape), COLOURS.index(colour))
        if key not in self._shapes:
            self._shapes[key] = self._instruments.shape_run(self.objects, *key)
        return self._shapes[key]

    def motion(self, colour: str, start: int) -> str | None:
        """The word of an object's motion from a frame on."""
        track = self.reading.centre[start : start + MOTION_FRAMES, COLOURS.index(colour)]
        return self._instruments.motion(track)

    def right(self, name: str, word: Any, colour: str | None) -> Tensor:
        """(T,) bool: frames that show an attribute, but for motions, which take many frames."""
        if name == "shape":
            assert colour is not None
            return self.has_shape(colour, word)
        if name == "count":
            return count_objects(self.view.reading, 1) == word
        if name == "background":
            return self.reading.background == BACKGROUNDS.index(word)
        return self.reading.found(COLOURS.index(word))

    def part(self, view: View, start: int, stop: int, fact: Fact) -> View:
        """Frames `[start, stop)` of a view alone, as of a stream of the fact's one object."""
        words = fact.expect if isinstance(fact.expect, Mapping) else {}
        subject = Subject(
            0,
            COLOURS.index(fact.object or words.get("colour", COLOURS[0])),
            SHAPES.index(words.get("shape", SHAPES[0])),
            MOTIONS.index(words.get("motion", MOTIONS[0])),
            BACKGROUNDS.index(words.get("background", BACKGROUNDS[0])),
        )
        spec = replace(self.view.video.spec, subjects=(subject,))
        video = replace(self.view.video, spec=spec, frames=self.view.video.frames[start:stop])
        return View(video, view.reading.part(start, stop))

    def drift(self, view: View) -> list[float]:
        """How right each stretch is: the mean share of its frames that show colour, shape and background."""
        points = drift_points(self._instruments, view, STRETCH_SECONDS, round(self.fps))
        return [(point.color + point.shape + point.background) / 3 for point in points]


def marks_of(marker: Marker, transcript: Transcript) -> list[Mark | None]:
    """The marks of a transcript's facts, in their order; None for facts about frames that the video lacks."""
    length = len(marker.view.video.frames)
    ends = [max(fact.frames[1], fact.against[1] if fact.against else 0) for fact in transcript.facts]
    return [
        marker.mark(fact) if end <= length else None for fact, end in zip(transcript.facts, ends, strict=True)
    ]


def _shares(name: str) -> Callable[[Marker, Fact], Mark]:
    """In which share of the frames an attribute is as expected."""

    def mark(marker: Marker, fact: Fact) -> Mark:
        right = marker.right(name, fact.expect, fact.object)[slice(*fact.frames)]
        share = float(right.float().mean())
        return Mark(share, share >= 1 - fact.given)

    return mark


def _count(marker: Marker, fact: Fact) -> Mark:
    start, stop = fact.frames
    counts = count_objects(marker.part(marker.view, start, stop, fact).reading, _LOOK)
    share = float((counts == fact.expect).float().mean())
    return Mark(share, share >= 1 - fact.given)


def _motion(marker: Marker, fact: Fact) -> Mark:
    assert fact.object is not None
    word = marker.motion(fact.object, fact.frames[1] - MOTION_FRAMES)
    return Mark(word, word == fact.expect)


def _path(marker: Marker, fact: Fact) -> Mark:
    """The mean distance from the path, of the width."""
    assert fact.object is not None
    track = marker.reading.centre[slice(*fact.frames), COLOURS.index(fact.object)]
    error = float(torus_apart(track, path_places(fact)).nan_to_num(LOST).mean())
    return Mark(error, error <= fact.given)


def path_places(fact: Fact) -> Tensor:
    """Where the object should be in each frame of a path, (T, 2): straight between the places given."""
    knots = torch.tensor(fact.expect, dtype=torch.float64)
    times = knots[:, 0].contiguous()
    now = torch.arange(*fact.frames, dtype=torch.float64)
    index = torch.searchsorted(times, now, right=True).clamp(1, max(1, len(times) - 1))
    if len(times) == 1:
        return knots[:, 1:].expand(len(now), -1).float()
    share = (now - times[index - 1]) / (times[index] - times[index - 1])
    return torch.lerp(knots[index - 1, 1:], knots[index, 1:], share[:, None]).float()


def _background_kept(marker: Marker, fact: Fact) -> Mark:
    """PSNR between the first and the last frame where neither shows an object."""
    psnr = background_psnr(marker.view, fact.frames[0], fact.frames[1] - 1)
    return Mark(psnr, psnr >= fact.expect)


def _place_kept(marker: Marker, fact: Fact) -> Mark:
    """The fastest step around the first frame, in steps that the object goes otherwise."""
    view = marker.part(marker.view, 0, len(marker.view.video.frames), fact)
    view = replace(view, video=replace(view.video, event=fact.frames[0]))
    fastest, own = hop(view, "colour" if fact.object is None else "motion")
    return Mark(fastest / own, fastest <= fact.given * own)


def _identity_kept(marker: Marker, fact: Fact) -> Mark:
    """How much the object's area has changed; not right either where its shape has, or where it is gone."""
    assert fact.object is not None
    assert fact.against is not None
    looks = []
    for start, stop in (fact.against, fact.frames):
        shapes = [name for name in SHAPES if _most(marker.has_shape(fact.object, name)[start:stop])]
        colour = COLOURS.index(fact.object)
        seen = _most(marker.reading.found(colour)[start:stop])
        looks.append((seen, shapes, float(marker.reading.area[start:stop, colour].median())))
    (seen, shapes, area), (seen_now, shapes_now, area_now) = looks
    if not seen or not seen_now:
        return Mark(None, False)
    changed = abs(area_now / area - 1)
    return Mark(changed, bool(shapes) and shapes == shapes_now and changed <= fact.given)


def _most(right: Tensor) -> bool:
    return float(right.float().mean()) > _MOST


def _shown_within(marker: Marker, fact: Fact) -> Mark:
    """Seconds until an attribute shows to stay; of a motion, whether it does so from the end of the tolerance
    on.
    """
    ((name, word),) = fact.expect.items()
    if name == "motion":
        assert fact.object is not None
        found = marker.motion(fact.object, fact.frames[0] + round(fact.given * marker.fps))
        return Mark(fact.given if found == word else None, found == word)
    after = first_lasting(marker.right(name, word, fact.object)[slice(*fact.frames)])
    seconds = None if after is None else after / marker.fps
    return Mark(seconds, seconds is not None and seconds <= fact.given)


def _returns(marker: Marker, fact: Fact) -> Mark:
    """The likeness of the ground to that of earlier frames: of each of some frames the best correlation with
    any of the earlier ones, and of these the median.
    """
    assert fact.against is not None
    looks, earlier = (
        torch.linspace(start, stop - 1, min(_LOOKS, stop - start)).round().long().tolist()
        for start, stop in (fact.frames, fact.against)
    )
    best = [max(ground_likeness(marker.view, now, then) for then in earlier) for now in looks]
    found = float(torch.tensor(best).median())
    return Mark(found, found >= fact.expect)


def ground_likeness(view: View, first: int, second: int) -> float:
    """Correlation in [-1, 1] of two frames where neither shows an object, each channel about its mean; -1
    where too little of the ground is seen. Unlike a PSNR it tells two places of one faint texture apart.
    """
    pixels = shared_ground(view, first, second)
    if len(pixels[0]) < _GROUND * view.reading.masks[0, 0].numel():
        return -1.0
    a, b = (some.float() - some.float().mean(0) for some in pixels)
    scale = float(a.norm() * b.norm())
    return float((a * b).sum()) / scale if scale else -1.0


def _no_drift(marker: Marker, fact: Fact) -> Mark:
    """How right the worst stretch is."""
    worst = min(marker.drift(marker.part(marker.objects, *fact.frames, fact)))
    return Mark(worst, worst >= 1 - fact.given)


MARKS: Mapping[str, Callable[[Marker, Fact], Mark]] = {
    "colour": _shares("colour"),
    "shape": _shares("shape"),
    "background": _shares("background"),
    "motion": _motion,
    "count": _count,
    "path": _path,
    "background_kept": _background_kept,
    "place_kept": _place_kept,
    "identity_kept": _identity_kept,
    "shown_within": _shown_within,
    "returns": _returns,
    "no_drift": _no_drift,
}
