"""Clips of the procedural world with exact captions, tracks and labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .attributes import SceneAttributes, sample_attributes
from .captions import DRAWS_PER_CAPTION, MustSay, ObjectWords, build_caption
from .config import SceneConfig
from .dynamics import NEVER, MotionPlan, Simulation, Trajectories, plan_drags
from .render import Renderer, RenderInput
from .shapes import BODY_RADIUS, EXTENTS, RING_BODY_RADII, WORLD_SIZE, inside_shape
from .vocabulary import SHAPES, SIZE_JITTER, SIZE_RADII

_RING = SHAPES.index("ring")
#: Tracks per object, where there are enough.
_TRACKS_PER_OBJECT = 3


@dataclass(frozen=True)
class SceneBatch:
    """B clips of T frames with O object slots and N tracks. Tensors on the generator's device.

    Attributes:
        video: uint8 (B, T, H, W, 3).
        captions: per clip one caption per segment, 1 (no change) or 2.
        segment_start: long (B, 2) first frame of each segment; the second is T when there is none.
        points: float32 (B, N, T, 2) normalised (x, y) in [0, 1]; wrapping objects jump there.
        visible: bool (B, N, T), false where an object in front covers the point.
        track_object: long (B, N) object index, -1 for a static (pinned) background point.
        dragged: bool (B, N, T), true while the track's object follows a drag.
        centres: float32 (B, O, T, 2) normalised object centres, 0 for unused slots.
        labels: long tensors, -1 for unused slots: ``count`` (B,), ``shape`` ``colour`` ``size`` ``motion``
            (B, 2, O) per segment, ``background`` (B, 2), ``changed`` (B, 4) 0/1 per kind of
            ``attributes.CHANGE_KINDS``, ``changed_object`` (B,). Clips without change repeat segment 0.
    """

    video: Tensor
    captions: list[list[str]]
    segment_start: Tensor
    points: Tensor
    visible: Tensor
    track_object: Tensor
    dragged: Tensor
    centres: Tensor
    labels: dict[str, Tensor]


@dataclass(frozen=True)
class _Tracks:
    """``SceneBatch`` fields of the tracks, on the CPU."""

    points: Tensor
    visible: Tensor
    track_object: Tensor
    dragged: Tensor


class SceneGenerator:
    """Draws batches of clips.

    Everything random is drawn on the CPU from one generator, so that a (config, seed) gives the same scenes
    on every device; pixels are made on ``device``.

    Args:
        config: the world's settings.
        device: where videos are rendered and returned.
    """

    def __init__(self, config: SceneConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self._renderer = Renderer(config, self.device)

    def sample(self, batch: int, frames: int, seed: int) -> SceneBatch:
        """Draws ``batch`` clips of ``frames`` frames, deterministic in (config, seed, batch, frames).

        Raises ValueError when ``batch`` or ``frames`` is below 1. Clips shorter than two change margins do
        not change, and clips too short for a drag have none; one frame is a still image.
        """
        if batch < 1 or frames < 1:
            raise ValueError(f"batch, frames: expected at least 1, found {batch} and {frames}")
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        room = frames - 2 * config.change_margin
        attributes = sample_attributes(config, batch, generator, may_change=room >= 0)
        late = config.change_margin + (torch.rand(batch, generator=generator) * (room + 1)).long()
        changes = attributes.changes.any(1)
        change_frame = torch.where(changes, late, NEVER)
        trajectories = self._move(attributes, change_frame, frames, generator)
        tracks = self._tracks(attributes, change_frame, trajectories, generator)
        texture = torch.randint(0, 1 << 20, (batch, 2, 4), generator=generator)
        captions = _captions(attributes, generator)
        video = self._draw(attributes, change_frame, trajectories, texture)
        used = _used(attributes)
        device = self.device
        return SceneBatch(
            video=video,
            captions=captions,
            segment_start=torch.stack([torch.zeros_like(late), change_frame.clamp(max=frames)], 1).to(device),
            points=tracks.points.to(device),
            visible=tracks.visible.to(device),
            track_object=tracks.track_object.to(device),
            dragged=tracks.dragged.to(device),
            centres=(trajectories.positions / WORLD_SIZE * used[:, :, None, None]).to(device),
            labels={name: label.to(device) for name, label in _labels(attributes).items()},
        )

    def _move(
        self, attributes: SceneAttributes, change_frame: Tensor, frames: int, generator: torch.Generator
    ) -> Trajectories:
        extent = torch.tensor(EXTENTS)[attributes.shape].amax(1)
        start, length = plan_drags(
            attributes.count, self.config.max_objects, frames, self.config.drag_probability, generator
        )
        plan = MotionPlan(
            motion=attributes.motion,
            change_frame=change_frame,
            margin=extent * _radii(attributes),
            drag_start=start,
            drag_frames=length,
        )
        return Simulation(plan, generator).run(frames)

    def _tracks(
        self,
        attributes: SceneAttributes,
        change_frame: Tensor,
        trajectories: Trajectories,
        generator: torch.Generator,
    ) -> _Tracks:
        batch, slots, frames, _ = trajectories.positions.shape
        number = self.config.tracks
        index = torch.arange(number)
        per_object = ((number - 1) // attributes.count).clamp(1, _TRACKS_PER_OBJECT)[:, None]
        owner = index // per_object
        owner = torch.where(owner < attributes.count[:, None], owner, -1)
        held = owner.clamp(min=0)
        rows = torch.arange(batch)[:, None]

        draws = torch.rand(batch, number, 2, generator=generator)
        rings = (attributes.shape == _RING).sum(1)[rows, held]
        body = BODY_RADIUS * draws[..., 0].sqrt()
        band = RING_BODY_RADII[0] + (RING_BODY_RADII[1] - RING_BODY_RADII[0]) * draws[..., 0]
        # An object that is a ring in one segment only has its points where both shapes are.
        reach = torch.where(rings == 2, band, torch.where(rings == 1, BODY_RADIUS, body))
        reach = reach * (index % per_object != 0) * _radii(attributes)[rows, held]
        angle = draws[..., 1] * 2 * torch.pi
        offset = reach[..., None] * torch.stack([torch.cos(angle), torch.sin(angle)], -1)
        moving = (trajectories.positions[rows, held] + offset[:, :, None]) % WORLD_SIZE
        still = (draws * WORLD_SIZE)[:, :, None].expand(-1, -1, frames, -1)
        background = (owner < 0)[..., None]
        points = torch.where(background[..., None], still, moving)
        return _Tracks(
            points=points / WORLD_SIZE,
            visible=~_covered(points, owner, attributes, change_frame, trajectories),
            track_object=owner,
            dragged=trajectories.dragged[rows, held] & ~background,
        )

    def _draw(
        self, attributes: SceneAttributes, change_frame: Tensor, trajectories: Trajectories, texture: Tensor
    ) -> Tensor:
        frames = trajectories.positions.shape[2]
        since = (torch.arange(frames) - change_frame[:, None] + 1).float()
        scene = RenderInput(
            background=attributes.background,
            texture=texture,
            fade=(since / self.config.fade_frames).clamp(0, 1).to(self.device),
            count=attributes.count.to(self.device),
            shape=attributes.shape.to(self.device),
            colour=attributes.colour.to(self.device),
            size=attributes.size.to(self.device),
            jitter=attributes.jitter.to(self.device),
            positions=trajectories.positions.to(self.device),
        )
        return self._renderer.draw(scene)


def _used(attributes: SceneAttributes) -> Tensor:
    """(B, O) bool: slots that hold an object."""
    return torch.arange(attributes.size.shape[1]) < attributes.count[:, None]


def _radii(attributes: SceneAttributes) -> Tensor:
    """(B, O) object radii in world units."""
    return torch.tensor(SIZE_RADII)[attributes.size] * torch.tensor(SIZE_JITTER)[attributes.jitter]


def _covered(
    points: Tensor,
    owner: Tensor,
    attributes: SceneAttributes,
    change_frame: Tensor,
    trajectories: Trajectories,
) -> Tensor:
    """(B, N, T) bool: points (world units) under an object painted later than their own."""
    frames = points.shape[2]
    covered = torch.zeros(points.shape[:3], dtype=torch.bool)
    segment = (torch.arange(frames) >= change_frame[:, None]).long()
    radii, used = _radii(attributes), _used(attributes)
    for slot in range(radii.shape[1]):
        apart = points - trajectories.positions[:, None, slot]
        apart = (apart + WORLD_SIZE / 2) % WORLD_SIZE - WORLD_SIZE / 2
        apart = apart / radii[:, slot, None, None, None]
        near = (apart.square().sum(-1) < max(EXTENTS) ** 2) & ((owner < slot) & used[:, slot, None])[
            ..., None
        ]
        clip, track, time = torch.nonzero(near, as_tuple=True)
        shape = attributes.shape[clip, segment[clip, time], slot]
        x, y = apart[clip, track, time].unbind(-1)
        covered[clip, track, time] |= inside_shape(shape, x, y)
    return covered


def _labels(attributes: SceneAttributes) -> dict[str, Tensor]:
    used = _used(attributes)[:, None]
    size = attributes.size[:, None].expand_as(attributes.shape)
    per_object = {
        "shape": attributes.shape,
        "colour": attributes.colour,
        "size": size,
        "motion": attributes.motion,
    }
    labels = {name: torch.where(used, values, -1) for name, values in per_object.items()}
    return labels | {
        "count": attributes.count,
        "background": attributes.background,
        "changed": attributes.changes.long(),
        "changed_object": attributes.changed_object,
    }


def _captions(attributes: SceneAttributes, generator: torch.Generator) -> list[list[str]]:
    """One caption per segment; what changes is said in both."""
    batch = attributes.count.shape[0]
    numbers = torch.rand(batch, 2, DRAWS_PER_CAPTION, generator=generator).tolist()
    counts = attributes.count.tolist()
    shapes, colours = attributes.shape.tolist(), attributes.colour.tolist()
    motions, sizes = attributes.motion.tolist(), attributes.size.tolist()
    backgrounds, changes = attributes.background.tolist(), attributes.changes.tolist()
    captions = []
    for clip in range(batch):
        colour_changes, _, background_changes, motion_changes = changes[clip]
        must = MustSay(colour=colour_changes, background=background_changes, motion=motion_changes)
        segments = []
        for segment in range(2 if any(changes[clip]) else 1):
            objects = [
                ObjectWords(
                    shape=shapes[clip][segment][slot],
                    colour=colours[clip][segment][slot],
                    size=sizes[clip][slot],
                    motion=motions[clip][segment][slot],
                )
                for slot in range(counts[clip])
            ]
            segments.append(build_caption(objects, backgrounds[clip][segment], must, numbers[clip][segment]))
        captions.append(segments)
    return captions
