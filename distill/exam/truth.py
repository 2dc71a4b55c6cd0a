"""Clips of the world itself that do what a plan tells: what an exam marks when everything is right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamgen.motion.file import load_motion

from ..evaluation.reading import torus_apart
from ..evaluation.streams import Subject
from ..evaluation.suites import FPS
from ..scenes import SceneConfig
from ..scenes.dynamics import NEVER, MotionPlan, Simulation
from ..scenes.render import Renderer, RenderInput
from ..scenes.shapes import EXTENTS, WORLD_SIZE
from ..scenes.vocabulary import SIZE_RADII
from .plans import Plan, Scene

_TEXTURES = 1 << 20
#: Draws of the places of several objects.
_TRIES = 8


class Truth:
    """Draws plans in frames of `size` x `size` pixels."""

    def __init__(self, size: int) -> None:
        self._config = SceneConfig(size=size)
        self._renderer = Renderer(self._config, torch.device("cpu"))

    def video(self, plan: Plan) -> Tensor:
        """The frames of a plan, uint8 (T, H, W, 3), a function of its seed.

        Scenes fade into each other as the world's changes do; a ground that comes back is the same one.
        """
        generator = torch.Generator().manual_seed(plan.seed)
        slots = max(len(scene.subjects) for scene in plan.scenes)
        jitter = torch.randint(0, 3, (1, slots), generator=generator)
        grounds = torch.randint(0, _TEXTURES, (6, 4), generator=generator)
        places = _clear_places(plan, slots, generator)
        video: Tensor | None = None
        for scene in plan.scenes:
            drawn = self._scene(scene, places, jitter, grounds)
            video = drawn if video is None else self._faded(video, drawn, scene.start)
        assert video is not None
        return video

    def _scene(self, scene: Scene, places: Tensor, jitter: Tensor, grounds: Tensor) -> Tensor:
        """One scene as if it had always been there, (T, H, W, 3)."""
        frames, missing = places.shape[2], places.shape[1] - len(scene.subjects)
        subjects = [*scene.subjects, *scene.subjects[:1] * missing]

        def both(name: str) -> Tensor:
            return torch.tensor([[vars(subject)[name] for subject in subjects]] * 2)[None]

        ground = scene.subjects[0].background
        clip = RenderInput(
            background=torch.full((1, 2), ground),
            texture=grounds[ground].expand(1, 2, 4),
            fade=torch.zeros(1, frames),
            count=torch.tensor([len(scene.subjects)]),
            shape=both("shape"),
            colour=both("colour"),
            size=both("size")[:, 0],
            jitter=jitter,
            positions=places,
            turn=torch.tensor([1.0, 0.0]).expand(1, frames, 2),
            shift=torch.zeros(1, frames, 2),
            scale=torch.ones(1, frames),
        )
        return self._renderer.draw(clip)[0]

    def _faded(self, before: Tensor, after: Tensor, start: int) -> Tensor:
        share = (torch.arange(len(before)) - start + 1).float() / self._config.fade_frames
        share = share.clamp(0, 1)
        mixed = (share > 0) & (share < 1)
        video = torch.where((share < 1)[:, None, None, None], before, after)
        ends = (before[mixed].float(), after[mixed].float())
        video[mixed] = torch.lerp(*ends, share[mixed, None, None, None]).round().to(torch.uint8)
        return video


def _clear_places(plan: Plan, slots: int, generator: torch.Generator) -> Tensor:
    """Places as `_places` has them; of several objects those of a few draws in which they are in each other's
    way for the fewest frames.
    """
    drawn = [_places(plan, slots, generator) for _ in range(1 if slots == 1 else _TRIES)]
    reach = 2 * max(_reach(subject) for scene in plan.scenes for subject in scene.subjects)
    apart = [torus_apart(one[0, 0] / WORLD_SIZE, one[0, -1] / WORLD_SIZE) * WORLD_SIZE for one in drawn]
    touching = [int((distance < reach).sum()) for distance in apart]
    return drawn[touching.index(min(touching))]


def _places(plan: Plan, slots: int, generator: torch.Generator) -> Tensor:
    """Where objects are (1, slots, T, 2), in world units: each goes as its scene says, or as it is led."""
    margin = max(_reach(subject) for scene in plan.scenes for subject in scene.subjects)
    motions = _motions(plan.scenes[0].subjects, torch.zeros(1, slots, dtype=torch.long))
    simulation = Simulation(
        MotionPlan(
            motion=motions[:, None].expand(-1, 2, -1),
            change_frame=torch.tensor([NEVER]),
            margin=torch.full((1, slots), margin),
            drag_start=torch.full((1, slots), NEVER),
            drag_frames=torch.zeros(1, slots, dtype=torch.long),
        ),
        generator,
    )
    led = {frame: _led(motion) for frame, motion in plan.motions.items()}
    first = torch.arange(slots)[None] == 0
    parts: list[Tensor] = []
    now, frame = motions, 0
    told = {scene.start: scene for scene in plan.scenes[1:]}
    while frame < plan.frames:
        if frame in told:
            now = _motions(told[frame].subjects, now)
            simulation.take_up(now)
        if frame in led:
            path = led[frame].expand(1, slots, -1, -1)
            simulation.carry(path, first)
            parts.append(path)
            frame += path.shape[2]
            continue
        stop = min([at for at in (*told, *led) if at > frame] + [plan.frames])
        # the present frame comes first: it has been shown, but for the stream's very first
        known = int(frame > 0)
        parts.append(simulation.run(stop - frame + known).positions[:, :, known:])
        frame = stop
    return torch.cat(parts, 2)[:, :, : plan.frames]


def _led(motion: object) -> Tensor:
    """The path (T, 2) of the one track of a motion, in world units."""
    assert isinstance(motion, dict)
    return load_motion(motion, FPS).points[0] * WORLD_SIZE


def _motions(subjects: Sequence[Subject], before: Tensor) -> Tensor:
    """Motions (1, slots): those of the subjects, and of slots that are not shown what they were."""
    found = before.clone()
    found[0, : len(subjects)] = torch.tensor([subject.motion for subject in subjects])
    return found


def _reach(subject: Subject) -> float:
    """How far an object reaches from its centre, in world units."""
    return EXTENTS[subject.shape] * SIZE_RADII[subject.size]
