"""Where objects are over time: own motions for ever, a change of motion, drags, camera moves.

Everything is in world units: the frame is 64 units wide, x right, y down, speeds in units per frame. All
motions are stationary: directions wrap around, the rest stays inside, so a clip may be cut at any time. Once
the camera has moved, the rest may lie across the border as well: only what bounces has a reason to come back.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .camera import CameraPath, flow
from .shapes import WORLD_SIZE
from .vocabulary import MOTIONS

FRAMES_PER_SECOND = 16
_CIRCLES, _BOUNCES, _ZIGZAG = MOTIONS.index("circles"), MOTIONS.index("bounces"), MOTIONS.index("zigzag")
_DIAGONAL = math.sqrt(0.5)
#: Unit vectors of the motions that go one way for ever.
DIRECTIONS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up right": (_DIAGONAL, -_DIAGONAL),
    "up left": (-_DIAGONAL, -_DIAGONAL),
    "down right": (_DIAGONAL, _DIAGONAL),
    "down left": (-_DIAGONAL, _DIAGONAL),
}

#: Directional speed in units per second.
_SPEED = (16.0, 26.0)
_CIRCLE_RADIUS = (7.0, 10.0)
_ZIGZAG_HEIGHT = 8.0
#: Frames of one zig and zag.
_ZIGZAG_PERIOD = (20.0, 28.0)
#: How fast an object that a change left too near the border moves inside, units per frame.
_SETTLE = 0.6
#: Share of the old velocity kept per frame after a change of motion or a drag.
_INERTIA = 0.6
DRAG_FRAMES = (16, 48)
DRAG_TRAVEL = (15.0, 45.0)
#: Frames of own motion before the clip's end that every drag leaves at least.
_DRAG_TAIL = 10
_DRAG_CANDIDATES = 8
NEVER = 1 << 30


@dataclass(frozen=True)
class MotionPlan:
    """What each object of a batch of clips does.

    Attributes:
        motion: (B, 2, O) motion index before and after the change.
        change_frame: (B,) first frame of the second segment, ``NEVER`` when none.
        margin: (B, O) distance a whole object keeps from the border.
        drag_start, drag_frames: (B, O) last frame before the drag and its length, ``NEVER`` and 0 when none.
        camera: moves that carry all objects, or None where the camera always rests.
    """

    motion: Tensor
    change_frame: Tensor
    margin: Tensor
    drag_start: Tensor
    drag_frames: Tensor
    camera: CameraPath | None = None


@dataclass(frozen=True)
class Trajectories:
    """Positions (B, O, T, 2) in [0, 64) world units and dragged (B, O, T) bool."""

    positions: Tensor
    dragged: Tensor


@dataclass
class _Motion:
    """Constants of the motion in force, each (B, O) or (B, O, 2)."""

    drift: Tensor
    circle: Tensor
    zigzag: Tensor
    rate: Tensor
    low: Tensor
    high: Tensor
    bounces: Tensor


def plan_drags(
    count: Tensor, slots: int, frames: int, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws ``drag_start`` and ``drag_frames`` (B, O): at most one dragged object per clip."""
    batch = count.shape[0]
    draws = torch.rand(batch, 4, generator=generator)
    room = frames - _DRAG_TAIL
    shortest, longest = DRAG_FRAMES
    length = shortest + (draws[:, 0] * (longest - shortest + 1)).long()
    length = length.clamp(max=max(shortest, room - 2))
    start = 1 + (draws[:, 1] * (room - length).clamp(min=0)).long()
    dragged = (draws[:, 2] < probability) & (start + length <= room)
    target = (draws[:, 3] * count).long()
    chosen = (torch.arange(slots) == target[:, None]) & dragged[:, None]
    return torch.where(chosen, start[:, None], NEVER), torch.where(chosen, length[:, None], 0)


def _between(low: float, high: float, draws: Tensor) -> Tensor:
    return low + (high - low) * draws


def _triangle(phase: Tensor) -> Tensor:
    """Triangle wave of period 2 pi in [-1, 1]."""
    return torch.asin(torch.sin(phase).clamp(-1, 1)) * (2 / math.pi)


class Simulation:
    """Moves the objects of one batch of clips frame by frame; a CPU generator is the only source of
    randomness.
    """

    def __init__(self, plan: MotionPlan, generator: torch.Generator) -> None:
        self._plan = plan
        batch, _, slots = plan.motion.shape
        draws = torch.rand(batch, slots, 10, generator=generator)
        self._speed = _between(*_SPEED, draws[..., 0]) / FRAMES_PER_SECOND
        self._circle_radius = _between(*_CIRCLE_RADIUS, draws[..., 1])
        self._zigzag_rate = 2 * math.pi / _between(*_ZIGZAG_PERIOD, draws[..., 2])
        self._turn = (draws[..., 3] < 0.5).float() * 2 - 1
        self._sign = (draws[..., 4:6] < 0.5).float() * 2 - 1
        self._phase = draws[..., 6] * 2 * math.pi
        self._motions = [self._constants(plan.motion[:, segment]) for segment in range(2)]
        self._now = self._motions[0]
        self._anchor = self._start_anchor(generator)
        self._position = (self._anchor + self._offset()) % WORLD_SIZE
        self._velocity = torch.zeros_like(self._position)
        self._inertia = torch.zeros(batch, slots)
        self._settle = torch.full((batch, 1, 1), _SETTLE)
        self._paths = torch.zeros(batch, slots, 3, 2)
        self._path_draws = torch.rand(batch, slots, _DRAG_CANDIDATES + 1, 4, generator=generator)

    def _constants(self, motion: Tensor) -> _Motion:
        table = torch.tensor([DIRECTIONS.get(name, (0.0, 0.0)) for name in MOTIONS])
        circles, bounces, zigzag = (motion == index for index in (_CIRCLES, _BOUNCES, _ZIGZAG))
        drift = table[motion] * self._speed[..., None]
        drift[..., 0] += zigzag * self._sign[..., 0] * self._speed * 0.85
        circle = circles * self._circle_radius
        height = zigzag * _ZIGZAG_HEIGHT
        rate = circles * self._turn * self._speed * 1.25 / self._circle_radius + zigzag * self._zigzag_rate
        margin = self._plan.margin[..., None] + circle[..., None]
        margin = margin + torch.stack([torch.zeros_like(height), height], -1)
        margin = margin.clamp(max=WORLD_SIZE / 2)
        wraps = ((table != 0) | torch.tensor([[name == "zigzag", False] for name in MOTIONS]))[motion]
        return _Motion(
            drift=drift,
            circle=circle[..., None],
            zigzag=height,
            rate=rate,
            low=torch.where(wraps, -math.inf, margin),
            high=torch.where(wraps, math.inf, WORLD_SIZE - margin),
            bounces=bounces[..., None],
        )

    def _start_anchor(self, generator: torch.Generator) -> Tensor:
        """Uniform in the allowed region; objects of one clip are set apart as the best of a few draws."""
        low = self._now.low.clamp(min=0)
        high = self._now.high.clamp(max=WORLD_SIZE)
        batch, slots, _ = low.shape
        tries = torch.rand(3, batch, slots, 2, generator=generator) * (high - low) + low
        anchor = tries[0]
        rows = torch.arange(batch)
        for slot in range(1, slots):
            gap = (
                tries[:, :, None, slot] - anchor[None, :, :slot] + WORLD_SIZE / 2
            ) % WORLD_SIZE - WORLD_SIZE / 2
            nearest = gap.square().sum(-1).amin(-1)
            anchor[:, slot] = tries[nearest.argmax(0), rows, slot]
        return anchor

    def _offset(self) -> Tensor:
        """Position relative to the anchor (circle centre, zigzag axis)."""
        circle = self._now.circle * torch.stack([torch.cos(self._phase), torch.sin(self._phase)], -1)
        circle[..., 1] += self._now.zigzag * _triangle(self._phase)
        return circle

    def _restart(self, mask: Tensor) -> None:
        """Takes up the motion in force from the present position, anchored on the inner side; mask (B, O)."""
        away = self._position - WORLD_SIZE / 2
        circle_phase = torch.atan2(away[..., 1], away[..., 0])
        zigzag_phase = torch.sign(away[..., 1]) * (math.pi / 2)
        phase = torch.where(self._now.zigzag > 0, zigzag_phase, circle_phase)
        self._phase = torch.where(mask, phase, self._phase)
        self._anchor = torch.where(mask[..., None], self._position - self._offset(), self._anchor)
        self._inertia = torch.where(mask, 1.0, self._inertia)

    def _change(self, frame: int) -> None:
        after = self._plan.change_frame <= frame
        pairs = zip(*(vars(motion).values() for motion in self._motions), strict=True)
        self._now = _Motion(
            *(torch.where(after.view(-1, *[1] * (old.dim() - 1)), new, old) for old, new in pairs)
        )
        changed = self._plan.motion[:, 0] != self._plan.motion[:, 1]
        self._restart((self._plan.change_frame == frame)[:, None] & changed)

    def _start_drag(self, mask: Tensor) -> None:
        """Draws the path (quadratic Bezier) of the drags that start now; mask (B, O)."""
        draws = self._path_draws
        heading = torch.atan2(self._velocity[..., 1], self._velocity[..., 0])[..., None]
        against = heading + math.pi + (draws[..., 0] - 0.5) * (2 * math.pi / 3)
        angle = torch.where(draws[..., 1] < 0.5, against, draws[..., 0] * 2 * math.pi)
        travel = _between(DRAG_TRAVEL[0], DRAG_TRAVEL[1], draws[..., 2])
        step = travel[..., None] * torch.stack([torch.cos(angle), torch.sin(angle)], -1)
        low = self._plan.margin[..., None, None].clamp(max=WORLD_SIZE / 2)
        start = self._position[..., None, :]
        ends = torch.minimum(torch.maximum(start + step, low), WORLD_SIZE - low)
        moved = (ends - start).norm(dim=-1)
        fits = (moved >= DRAG_TRAVEL[0]) & (moved <= DRAG_TRAVEL[1])
        order = torch.arange(moved.shape[-1], 0, -1)
        best = torch.where(fits, 1000.0 + order, -(moved - DRAG_TRAVEL[0]).abs()).argmax(-1)
        end = ends.gather(2, best[..., None, None].expand(*best.shape, 1, 2))
        bow = (draws[..., -1, :2] - 0.5) * 0.7 * moved.gather(2, best[..., None])
        control = (start + end)[..., 0, :] / 2 + bow
        control = torch.minimum(torch.maximum(control, low[..., 0, :]), WORLD_SIZE - low[..., 0, :])
        paths = torch.stack([self._position, control, end[..., 0, :]], 2)
        self._paths = torch.where(mask[..., None, None], paths, self._paths)

    def _along_path(self, frame: int) -> Tensor:
        """Position (B, O, 2) on the drag paths at a frame, eased in and out."""
        plan = self._plan
        progress = ((frame - plan.drag_start) / plan.drag_frames.clamp(min=1)).clamp(0, 1)
        ease = self._path_draws[..., -1, 2]
        smooth = progress.square() * (3 - 2 * progress)
        s = (progress + ease * (smooth - progress))[..., None]
        first, control, last = self._paths.unbind(2)
        return (1 - s).square() * first + 2 * s * (1 - s) * control + s.square() * last

    def _own_step(self) -> Tensor:
        """Advances phase and anchor by a frame; the new position (B, O, 2), not wrapped."""
        now = self._now
        inward = (self._anchor < now.low).float() - (self._anchor > now.high).float()
        self._sign = torch.where(now.bounces & (inward != 0), inward, self._sign)
        bounce = now.bounces * self._sign * (self._speed * 0.75)[..., None]
        anchor = self._anchor + now.drift + bounce
        settled = torch.maximum(torch.minimum(anchor, now.high), now.low)
        settled = torch.where(now.bounces, anchor, settled)
        anchor = anchor + torch.minimum(torch.maximum(settled - anchor, -self._settle), self._settle)
        self._phase = self._phase + now.rate
        return anchor + self._offset()

    def _camera_steps(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Frames in which some camera moves, with the step (``CameraPath.steps``) that leads to them."""
        camera = self._plan.camera
        if camera is None:
            return {}
        factor, offset = camera.steps()
        frames = torch.nonzero(camera.moving.any(0)).squeeze(1).tolist()
        return {frame: (factor[:, frame - 1], offset[:, frame - 1]) for frame in frames}

    def run(self, frames: int) -> Trajectories:
        """Trajectories of the next ``frames`` frames, the present one first."""
        plan = self._plan
        changes = set(plan.change_frame.tolist())
        starts = set(plan.drag_start.flatten().tolist())
        ends = set((plan.drag_start + plan.drag_frames).flatten().tolist())
        camera = self._camera_steps()
        time = torch.arange(frames)
        start = plan.drag_start[..., None]
        dragged = (start < time) & (time <= start + plan.drag_frames[..., None])
        drags = set(torch.nonzero(dragged.any(0).any(0)).squeeze(1).tolist())
        positions = [self._position]
        for frame in range(1, frames):
            if frame in changes:
                self._change(frame)
            if frame in starts:
                self._start_drag(plan.drag_start == frame)
            carried = torch.zeros(())
            if plan.camera is not None and frame in camera:
                carried = flow(self._position, *camera[frame])
                self._settle = self._settle * ~plan.camera.moving[:, frame, None, None]
            step = self._own_step() - self._position
            step = step + self._inertia[..., None] * (self._velocity - step)
            # what is dragged is held in the picture, whatever the camera does
            if frame in drags:
                held = self._along_path(frame) - self._position - carried
                step = torch.where(dragged[..., frame, None], held, step)
            self._inertia = self._inertia * _INERTIA
            self._velocity = step
            self._position = (self._position + step + carried) % WORLD_SIZE
            self._anchor = self._position - self._offset()
            if frame in ends:
                self._restart(plan.drag_start + plan.drag_frames == frame)
            positions.append(self._position)
        return Trajectories(torch.stack(positions, 2), dragged)

    def take_up(self, motion: Tensor) -> None:
        """Other motions (B, O) from the next frame on, as behind a change; those that stay the same go on."""
        changed = motion != self._plan.motion[:, 0]
        self._plan = replace(self._plan, motion=motion[:, None].expand(-1, 2, -1))
        self._motions = [self._constants(motion)] * 2
        self._now = self._motions[0]
        self._restart(changed)

    def carry(self, places: Tensor, held: Tensor) -> None:
        """Objects that are `held` (B, O) were led through places (B, O, T, 2) in world units, T at least 2;
        from the last of these on they go their own way, as behind a drag.
        """
        chosen = held[..., None]
        self._position = torch.where(chosen, places[:, :, -1], self._position)
        self._velocity = torch.where(chosen, places[:, :, -1] - places[:, :, -2], self._velocity)
        self._anchor = self._position - self._offset()
        self._restart(held)
