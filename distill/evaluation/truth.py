"""The control of the measures: clips of the world itself, dressed as streams that do exactly what they are
told.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..scenes import SceneBatch, SceneConfig, SceneGenerator
from ..scenes.attributes import CHANGE_KINDS
from .classifiers import MOTION_FRAMES
from .streams import StreamSpec, Subject, Switch, Video
from .suites import RELEASE_FRAMES, SWITCH_FRAMES, canonical

_BATCH = 32
#: Frames in which a drag can begin and end.
_DRAG_ROOM = 80
_Maker = Callable[[SceneBatch, int], Video | None]


class Truth:
    """Draws true videos of each suite; each is a function of the seed.

    Args:
        size: side of the frame in pixels.
        count: videos per suite.
        motions: motion indices to draw from.
        seed: of the clips; training draws from other seeds.
    """

    def __init__(self, size: int, count: int, motions: Sequence[int], seed: int) -> None:
        self._count, self._motions, self._seed = count, frozenset(motions), seed
        self._world = SceneConfig(
            size=size,
            object_weights=(1.0,),
            change_probability=0.0,
            drag_probability=0.0,
            camera_probability=0.0,
        )

    def plain(self, frames: int) -> list[Video]:
        """Clips of one object in which nothing changes."""
        return self._videos(self._world, frames, 1, _plain)

    def drags(self) -> list[Video]:
        """Clips with a drag after which there is time to read the motion."""
        world = replace(self._world, drag_probability=1.0)
        return self._videos(world, _DRAG_ROOM + RELEASE_FRAMES + MOTION_FRAMES, 2, _dragged)

    def switches(self) -> list[Video]:
        """Clips in which one thing changes, with time before and after."""
        after = SWITCH_FRAMES + MOTION_FRAMES
        world = replace(
            self._world, change_probability=1.0, double_change_probability=0.0, change_margin=after
        )
        return self._videos(world, 2 * after, 3, _switched)

    def _videos(self, world: SceneConfig, frames: int, suite: int, make: _Maker) -> list[Video]:
        generator, batch = SceneGenerator(world), 0
        videos: list[Video] = []
        while len(videos) < self._count:
            scene = generator.sample(_BATCH, frames, _seed(self._seed, suite, batch))
            made = [make(scene, i) for i in range(_BATCH)]
            videos += [video for video in made if video is not None and self._knows(video)]
            batch += 1
        return videos[: self._count]

    def _knows(self, video: Video) -> bool:
        switch = video.spec.switch
        subjects = (*video.spec.subjects, *([] if switch is None else [switch.after]))
        return all(subject.motion in self._motions for subject in subjects)


def _seed(seed: int, suite: int, batch: int) -> int:
    return 9_000_000_011 + (seed * 10 + suite) * 100_003 + batch


def _subject(scene: SceneBatch, clip: int, segment: int) -> Subject:
    colour, shape, motion = (
        int(scene.labels[name][clip, segment, 0]) for name in ("colour", "shape", "motion")
    )
    return Subject(
        int(scene.labels["size"][clip, segment, 0]),
        colour,
        shape,
        motion,
        int(scene.labels["background"][clip, segment]),
    )


def _video(scene: SceneBatch, clip: int, event: int, switch: Switch | None, path: torch.Tensor) -> Video:
    frames, subject = scene.video[clip], _subject(scene, clip, 0)
    spec = StreamSpec("truth", canonical(subject), clip, len(frames), (subject,), None, switch)
    return Video(spec, frames, event, path)


def _plain(scene: SceneBatch, clip: int) -> Video:
    return _video(scene, clip, scene.video.shape[1], None, torch.zeros(0, 2))


def _dragged(scene: SceneBatch, clip: int) -> Video | None:
    dragged = torch.nonzero(scene.dragged[clip].any(0))[:, 0]
    if not len(dragged) or int(dragged[-1]) + RELEASE_FRAMES + MOTION_FRAMES >= scene.video.shape[1]:
        return None
    first, last = int(dragged[0]), int(dragged[-1])
    return _video(scene, clip, first, None, scene.centres[clip, 0, first : last + 1])


def _switched(scene: SceneBatch, clip: int) -> Video:
    event, after = int(scene.segment_start[clip, 1]), _subject(scene, clip, 1)
    kind = CHANGE_KINDS[int(scene.labels["changed"][clip].argmax())]
    switch = Switch(event, canonical(after), after, kind)
    return _video(scene, clip, event, switch, torch.zeros(0, 2))
