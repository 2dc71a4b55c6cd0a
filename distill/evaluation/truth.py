"""The control of the measures: clips of the world itself, dressed as streams that do exactly what they are
told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..scenes import MOTIONS, SceneBatch, SceneConfig, SceneGenerator
from ..scenes.attributes import CHANGE_KINDS
from ..scenes.vocabulary import held_out_indices
from .classifiers import MOTION_FRAMES
from .streams import StreamSpec, Subject, Switch, Video
from .suites import (
    FPS,
    PAIR_KINDS,
    RELEASE_FRAMES,
    SWITCH_FRAMES,
    SWITCH_KINDS,
    EvaluationConfig,
    canonical,
    pair_words,
)

#: Frames drawn at once, at most, and clips of them.
_FRAMES_AT_ONCE, _BATCH = 4096, 32
#: Frames in which a drag can begin and end.
_DRAG_ROOM = 80
_NUMBERS = {"prompts": 1, "drags": 2, "switches": 3, "unseen": 4, "pairs": 5, "drift": 6, "long_drift": 7}
_Maker = Callable[[SceneBatch, int, int], Video | None]


@dataclass(frozen=True)
class TruthSuite:
    """True videos of one suite: `count` of them, of `frames` frames where the suite leaves that open."""

    suite: str
    variant: str
    count: int
    frames: int


def truth_suites(config: EvaluationConfig) -> list[TruthSuite]:
    """The controls of an evaluation: every suite that is streamed, with at most as many clips as streams."""

    def made(suite: str, variant: str, wanted: int, seconds: float) -> TruthSuite:
        return TruthSuite(suite, variant, min(wanted, config.clips), 1 + round(seconds * FPS))

    found = [
        made("prompts", "plain", config.prompts, config.seconds),
        made("unseen", "plain", config.unseen, config.seconds),
        made("drags", "told", config.drags, config.seconds),
        made("pairs", "dragged", config.pairs, config.seconds),
        made("pairs", "alone", config.pairs, config.seconds),
        made("switches", "recache", config.switches, config.seconds),
        made("drift", "plain", config.drift, config.drift_seconds),
        made("long_drift", "plain", config.long_drift, config.long_drift_seconds),
    ]
    return [suite for suite in found if suite.count]


class Truth:
    """Draws true videos of each suite, of `size` x `size` pixels and some motions; each is a function of the
    seed, the first ones of more are the same. Training draws from other seeds.
    """

    def __init__(self, size: int, motions: Sequence[int] = range(len(MOTIONS)), seed: int = 1) -> None:
        self._motions, self._seed = frozenset(motions), seed
        self._world = SceneConfig(size=size).alone()

    def videos(self, suite: TruthSuite) -> list[Video]:
        """The videos of a suite."""
        world, after, frames = self._world, SWITCH_FRAMES + MOTION_FRAMES, suite.frames
        make: _Maker = _plain
        if suite.suite == "unseen":
            world, make = replace(world, include_held_out=True), _unseen
        elif suite.suite == "drags":
            world, make = replace(world, drag_probability=1.0), _dragged
            frames = _DRAG_ROOM + RELEASE_FRAMES + MOTION_FRAMES
        elif suite.suite == "switches":
            world, make, frames = replace(world, change_probability=1.0), _switched, 2 * after
            world = replace(world, double_change_probability=0.0, change_margin=after)
        elif suite.suite == "pairs":
            dragged = suite.variant == "dragged"
            world = replace(world, object_weights=(0.0, 1.0), drag_probability=float(dragged))
            make, frames = (_pair_dragged if dragged else _pair), _DRAG_ROOM + MOTION_FRAMES
        return self._draw(world, frames, suite, make)

    def _draw(self, world: SceneConfig, frames: int, suite: TruthSuite, make: _Maker) -> list[Video]:
        generator, batch = SceneGenerator(world), 0
        size = max(1, min(_BATCH, _FRAMES_AT_ONCE // frames))
        # as often as in the streams, where these go in turn
        kinds = {"pairs": PAIR_KINDS, "switches": SWITCH_KINDS}.get(suite.suite, ("",))
        found: dict[str, list[Video]] = {kind: [] for kind in kinds}
        wanted = {kind: len(range(place, suite.count, len(kinds))) for place, kind in enumerate(kinds)}
        while any(len(found[kind]) < wanted[kind] for kind in kinds):
            scene = generator.sample(size, frames, _seed(self._seed, _NUMBERS[suite.suite], batch))
            for clip in range(size):
                video = make(scene, clip, batch * size + clip)
                if video is None or not self._knows(video):
                    continue
                some = found[video.spec.kind if video.spec.kind in found else ""]
                if len(some) < suite.count:
                    spec = replace(video.spec, suite=suite.suite, variant=suite.variant)
                    some.append(replace(video, spec=spec))
            batch += 1
        return [found[kinds[i % len(kinds)]][i // len(kinds)] for i in range(suite.count)]

    def _knows(self, video: Video) -> bool:
        switch = video.spec.switch
        subjects = (*video.spec.subjects, *([] if switch is None else [switch.after]))
        return all(subject.motion in self._motions for subject in subjects)


def _seed(seed: int, suite: int, batch: int) -> int:
    return 9_000_000_011 + (seed * 10 + suite) * 100_003 + batch


def _subject(scene: SceneBatch, clip: int, segment: int, slot: int = 0) -> Subject:
    size, colour, shape, motion = (
        int(scene.labels[name][clip, segment, slot]) for name in ("size", "colour", "shape", "motion")
    )
    return Subject(size, colour, shape, motion, int(scene.labels["background"][clip, segment]))


def _video(scene: SceneBatch, clip: int, spec: StreamSpec, event: int, path: Tensor | None = None) -> Video:
    frames = scene.video[clip]
    # where chunks of one latent frame would begin
    borders = tuple(range(1, len(frames), 4))
    return Video(spec, frames, event, torch.zeros(0, 2) if path is None else path, borders)


def _plain(scene: SceneBatch, clip: int, number: int) -> Video:
    subject, frames = _subject(scene, clip, 0), scene.video.shape[1]
    kind = MOTIONS[subject.motion]
    spec = StreamSpec("", canonical(subject), number, frames, (subject,), kind=kind)
    return _video(scene, clip, spec, frames)


def _unseen(scene: SceneBatch, clip: int, number: int) -> Video | None:
    video = _plain(scene, clip, number)
    (subject,) = video.spec.subjects
    if (subject.colour, subject.shape) not in held_out_indices():
        return None
    return replace(video, spec=replace(video.spec, kind=pair_words(subject)))


def _drag_of(scene: SceneBatch, clip: int) -> tuple[int, int, int] | None:
    """First and last frame of a clip's drag, and the object."""
    dragged = torch.nonzero(scene.dragged[clip].any(0))[:, 0]
    if not len(dragged):
        return None
    tracks = torch.nonzero(scene.dragged[clip].any(1))[:, 0]
    return int(dragged[0]), int(dragged[-1]), int(scene.track_object[clip, tracks[0]])


def _dragged(scene: SceneBatch, clip: int, number: int) -> Video | None:
    found = _drag_of(scene, clip)
    if found is None or found[1] + RELEASE_FRAMES + MOTION_FRAMES >= scene.video.shape[1]:
        return None
    first, last, _ = found
    spec = _plain(scene, clip, number).spec
    return _video(scene, clip, spec, first, scene.centres[clip, 0, first : last + 1])


def _pair(scene: SceneBatch, clip: int, number: int, first: int = 0) -> Video | None:
    """Two objects, the one in slot `first` named first; None where shape and motion are both the same."""
    one, two = (_subject(scene, clip, 0, slot) for slot in (first, 1 - first))
    same_shape, same_motion = one.shape == two.shape, one.motion == two.motion
    if same_shape and same_motion:
        return None
    kind = "same shape" if same_shape else "same motion" if same_motion else "different"
    frames = scene.video.shape[1]
    spec = StreamSpec("pairs", canonical(one, two), number, frames, (one, two), kind=kind)
    return _video(scene, clip, spec, frames - MOTION_FRAMES)


def _pair_dragged(scene: SceneBatch, clip: int, number: int) -> Video | None:
    found = _drag_of(scene, clip)
    if found is None or found[0] + MOTION_FRAMES >= scene.video.shape[1]:
        return None
    first, last, slot = found
    video = _pair(scene, clip, number, slot)
    return (
        None
        if video is None
        else replace(video, event=first, path=scene.centres[clip, slot, first : last + 1])
    )


def _switched(scene: SceneBatch, clip: int, number: int) -> Video:
    before, after = (_subject(scene, clip, segment) for segment in (0, 1))
    event, frames = int(scene.segment_start[clip, 1]), scene.video.shape[1]
    kind = CHANGE_KINDS[int(scene.labels["changed"][clip].argmax())]
    switch = Switch(event, canonical(after), after, kind)
    spec = StreamSpec("switches", canonical(before), number, frames, (before,), None, switch, kind=kind)
    return _video(scene, clip, spec, event)
