"""Clips of the procedural world with exact captions, tracks and labels."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attributes import SceneAttributes, sample_attributes
from .camera import CameraPath, CameraPlan, camera_path, plan_camera, starting_jitter
from .captions import DRAWS_PER_CAPTION, MustSay, ObjectWords, build_caption
from .config import SceneConfig
from .dynamics import NEVER, MotionPlan, Simulation, Trajectories, plan_drags
from .render import Renderer, RenderInput
from .shapes import EXTENTS, WORLD_SIZE, DistanceTable
from .tracks import SceneMotion, lay_tracks, object_radii, used_slots
from .vocabulary import SIZE_JITTER


@dataclass(frozen=True)
class SceneBatch:
    """B clips of T frames with O object slots and N tracks. Tensors on the generator's device.

    Attributes:
        video: uint8 (B, T, H, W, 3).
        captions: per clip one caption per segment, 1 (no change) or 2.
        segment_start: long (B, 2) first frame of each segment; the second is T when there is none.
        points: float32 (B, N, T, 2) normalised (x, y); wrapping objects jump. In [0, 1], but for background
            points that a camera move takes out of the picture.
        visible: bool (B, N, T), false where an object in front covers the point and outside the picture.
        track_object: long (B, N) object index, -1 for a point of the background.
        pinned: bool (B, N), background points of clips in which the camera rests.
        dragged: bool (B, N, T), true while the track's object follows a drag.
        camera: bool (B, T), true while the camera moves: in such frames everything but what is dragged moves
            with it, all background points alone.
        camera_move: float32 (B, 4) ``pan`` right and down (frame sizes), ``zoom``, ``rotate`` (degrees) as
            ``streamgen.motion.tracks.camera`` has them, of the whole move, even where the clip ends before it
            does; (0, 0, 1, 0) where the camera rests.
        centres: float32 (B, O, T, 2) normalised object centres, 0 for unused slots.
        radii: float32 (B, O, T) object radii in frame sizes, 0 for unused slots.
        labels: long tensors, -1 for unused slots: ``count`` (B,), ``shape`` ``colour`` ``size`` ``motion``
            (B, 2, O) per segment, ``background`` (B, 2), ``changed`` (B, 4) 0/1 per kind of
            ``attributes.CHANGE_KINDS``, ``changed_object`` (B,), ``camera`` (B, 3) 0/1 per kind of
            ``camera.CAMERA_KINDS``. Clips without change repeat segment 0.
    """

    video: Tensor
    captions: list[list[str]]
    segment_start: Tensor
    points: Tensor
    visible: Tensor
    track_object: Tensor
    pinned: Tensor
    dragged: Tensor
    camera: Tensor
    camera_move: Tensor
    centres: Tensor
    radii: Tensor
    labels: dict[str, Tensor]


class SceneGenerator:
    """Draws batches of clips.

    Everything random is drawn on the CPU from one generator, so that a (config, seed) gives the same scenes
    on every device; pixels are made and returned on ``device``.
    """

    def __init__(self, config: SceneConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self._renderer = Renderer(config, self.device)
        self._table = DistanceTable()

    def sample(self, batch: int, frames: int, seed: int) -> SceneBatch:
        """Draws ``batch`` clips of ``frames`` frames, deterministic in (config, seed, batch, frames).

        Raises ValueError when ``batch`` or ``frames`` is below 1. Clips shorter than two change margins do
        not change, and clips too short for a drag or a camera move have none; one frame is a still image.
        """
        if batch < 1 or frames < 1:
            raise ValueError(f"batch, frames: expected at least 1, found {batch} and {frames}")
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        room = frames - 2 * config.change_margin
        attributes = sample_attributes(config, batch, generator, may_change=room >= 0)
        plan = plan_camera(frames, batch, config.camera_probability, generator)
        jitter = starting_jitter(attributes.jitter, plan, len(SIZE_JITTER))
        attributes = replace(attributes, jitter=jitter)
        late = config.change_margin + (torch.rand(batch, generator=generator) * (room + 1)).long()
        change_frame = torch.where(attributes.changes.any(1), late, NEVER)
        camera = camera_path(plan, frames)
        trajectories = self._move(attributes, change_frame, camera, generator)
        motion = SceneMotion(change_frame, trajectories, plan, camera)
        tracks = lay_tracks(attributes, motion, config.tracks, self._table, generator)
        texture = torch.randint(0, 1 << 20, (batch, 2, 4), generator=generator)
        captions = _captions(attributes, generator)
        used = used_slots(attributes)[:, :, None]
        radii = object_radii(attributes)[..., None] * camera.scale[:, None]
        device = self.device
        return SceneBatch(
            video=self._draw(attributes, motion, texture),
            captions=captions,
            segment_start=torch.stack([torch.zeros_like(late), change_frame.clamp(max=frames)], 1).to(device),
            points=tracks.points.to(device),
            visible=tracks.visible.to(device),
            track_object=tracks.track_object.to(device),
            pinned=tracks.pinned.to(device),
            dragged=tracks.dragged.to(device),
            camera=camera.moving.to(device),
            camera_move=plan.move.to(device),
            centres=(trajectories.positions / WORLD_SIZE * used[..., None]).to(device),
            radii=(radii / WORLD_SIZE * used).to(device),
            labels={name: label.to(device) for name, label in _labels(attributes, plan).items()},
        )

    def _move(
        self,
        attributes: SceneAttributes,
        change_frame: Tensor,
        camera: CameraPath,
        generator: torch.Generator,
    ) -> Trajectories:
        frames = camera.turn.shape[1]
        extent = torch.tensor(EXTENTS)[attributes.shape].amax(1)
        start, length = plan_drags(
            attributes.count, self.config.max_objects, frames, self.config.drag_probability, generator
        )
        plan = MotionPlan(
            motion=attributes.motion,
            change_frame=change_frame,
            margin=extent * object_radii(attributes),
            drag_start=start,
            drag_frames=length,
            camera=camera,
        )
        return Simulation(plan, generator).run(frames)

    def _draw(self, attributes: SceneAttributes, motion: SceneMotion, texture: Tensor) -> Tensor:
        frames = motion.camera.turn.shape[1]
        since = (torch.arange(frames) - motion.change_frame[:, None] + 1).float()
        device = self.device
        scene = RenderInput(
            background=attributes.background.to(device),
            texture=texture.to(device),
            fade=(since / self.config.fade_frames).clamp(0, 1).to(device),
            count=attributes.count.to(device),
            shape=attributes.shape.to(device),
            colour=attributes.colour.to(device),
            size=attributes.size.to(device),
            jitter=attributes.jitter.to(device),
            positions=motion.trajectories.positions.to(device),
            turn=torch.view_as_real(motion.camera.turn).to(device),
            shift=torch.view_as_real(motion.camera.shift).to(device),
            scale=motion.camera.scale.to(device),
        )
        return self._renderer.draw(scene)


def _labels(attributes: SceneAttributes, plan: CameraPlan) -> dict[str, Tensor]:
    used = used_slots(attributes)[:, None]
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
        "camera": plan.kinds.long(),
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
