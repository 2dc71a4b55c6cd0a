"""Camera moves: episodes in which everything in the picture follows one field of pan, zoom and rotation.

What a caption says of an object (direction, size, shape) is meant in the picture, so a camera move is an
episode of 16 to 48 frames and never a state: while it lasts, its field is added to every object's own motion
and carries the background along; afterwards the camera rests where it is and every object moves as its
caption says. Captions do not tell of it, tracks do: the prompt tells the scene, motion tells the camera.
Objects stay upright, since a square turned by 45 degrees is a diamond. Signs and the order of zoom, rotation
and pan are those of ``streamgen.motion.tracks.camera``.

The world has no edge, but a zoom has a centre, so its field cannot be continuous where the picture's left
edge is its right edge. An object on that seam belongs to both sides and goes with neither: the part of the
field that depends on place falls to zero over the last ``_SEAM`` units. All else follows the exact map.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import WORLD_SIZE

#: Order of the columns of ``labels["camera"]``.
CAMERA_KINDS: tuple[str, ...] = ("pan", "zoom", "rotate")
CAMERA_FRAMES = (16, 48)
#: Frames of rest that an episode leaves at the end of a clip, unless it begins in the clip's first half.
_TAIL = 10
#: Shorter clips have no camera moves.
_SHORTEST_CLIP = 16

#: Kinds of an episode as rows of ``CAMERA_KINDS`` with their weights.
_MIXES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
_MIX_WEIGHTS = (0.4, 0.2, 0.15, 0.08, 0.06, 0.06, 0.05)
#: How much less a mixture pans and rotates.
_MIXED = 0.7
#: World units per frame, on average over an episode, and the farthest in all.
_PAN_SPEED = (0.35, 1.5)
_PAN_LIMIT = 48.0
_ZOOM = (1.08, 4 / 3)
#: Degrees, and the most per frame on average over an episode.
_ROTATE = (10.0, 45.0)
_ROTATE_SPEED = 2.0
#: Objects grow by this power of the zoom. With jitter set against the zoom (``starting_jitter``) their radii
#: stay within 0.86 to 1.16 of their class, and classes (8, 11, 15) do not touch: "medium" stays true.
_OBJECT_POWER = 2 / 3
_SEAM = 4.0
_CENTRE = WORLD_SIZE / 2


@dataclass(frozen=True)
class CameraPlan:
    """At most one episode per clip, for B clips.

    Attributes:
        kinds: (B, 3) bool, columns ``CAMERA_KINDS``; all false where the camera rests.
        move: (B, 4) float: pan right and down in frame sizes, zoom factor, clockwise roll in degrees, over
            the whole episode; (0, 0, 1, 0) where the camera rests.
        start: (B,) last frame before the move.
        frames: (B,) length of the episode; it may last beyond the end of the clip.
        ease: (B,) in [0, 1] from even speed to a smooth start and stop.
    """

    kinds: Tensor
    move: Tensor
    start: Tensor
    frames: Tensor
    ease: Tensor


@dataclass(frozen=True)
class CameraPath:
    """Where the picture's content of the time before the move lies in each of T frames.

    A place p of before (world units, as complex x + iy) is at ``turn * (p - centre) + shift + centre``.

    Attributes:
        turn, shift: (B, T) complex64.
        moving: (B, T) bool, frames that differ from the one before.
        scale: (B, T) factor of object sizes.
    """

    turn: Tensor
    shift: Tensor
    moving: Tensor
    scale: Tensor

    def steps(self) -> tuple[Tensor, Tensor]:
        """Map from each frame to the next, ``factor * (p - centre) + offset + centre``: two (B, T - 1)."""
        factor = self.turn[:, 1:] / self.turn[:, :-1]
        return factor, self.shift[:, 1:] - factor * self.shift[:, :-1]

    def carried(self, points: Tensor, sown: Tensor) -> Tensor:
        """Places (B, N, T, 2) over time of points (B, N, 2) that lie there in frames ``sown`` (B, N)."""
        place = torch.view_as_complex(points - _CENTRE)
        before = (place - self.shift.gather(1, sown)) / self.turn.gather(1, sown)
        path = self.turn[:, None] * before[..., None] + self.shift[:, None]
        return torch.view_as_real(path) + _CENTRE


def plan_camera(frames: int, batch: int, probability: float, generator: torch.Generator) -> CameraPlan:
    """Draws the camera moves of a batch of clips of ``frames`` frames."""
    draws = torch.rand(batch, 8, generator=generator)
    shortest, longest = CAMERA_FRAMES
    length = shortest + (draws[:, 0] * (longest - shortest + 1)).long()
    latest = (frames - length - _TAIL).clamp(min=frames // 2)
    start = (draws[:, 1] * (latest + 1)).long()
    has = (draws[:, 2] < probability) & (frames >= _SHORTEST_CLIP)
    mix = torch.multinomial(torch.tensor(_MIX_WEIGHTS), batch, replacement=True, generator=generator)
    kinds = torch.tensor(_MIXES, dtype=torch.bool)[mix] & has[:, None]
    less = torch.where(kinds.sum(1) > 1, _MIXED, 1.0)

    low, high = _PAN_SPEED
    distance = ((low + (high - low) * draws[:, 3]) * length * less).clamp(max=_PAN_LIMIT) / WORLD_SIZE
    # half of the pans go straight, as people pan
    angle = draws[:, 4] * 4 * math.pi
    straight = (angle / (math.pi / 2)).floor() * (math.pi / 2)
    angle = torch.where(angle < 2 * math.pi, straight, angle)
    low, high = math.log(_ZOOM[0]), math.log(_ZOOM[1])
    zoom = _signed(draws[:, 5], low, torch.full((batch,), high)).exp()
    most = (length * _ROTATE_SPEED).clamp(max=_ROTATE[1])
    rotate = _signed(draws[:, 6], _ROTATE[0], most) * less
    move = torch.stack([distance * angle.cos(), distance * angle.sin(), zoom, rotate], 1)
    rest = torch.tensor([0.0, 0.0, 1.0, 0.0])
    moved = kinds[:, [0, 0, 1, 2]]
    return CameraPlan(kinds, torch.where(moved, move, rest), start, length, draws[:, 7])


def camera_path(plan: CameraPlan, frames: int) -> CameraPath:
    """The path of a batch of camera moves over the first ``frames`` frames of their clips."""
    time = torch.arange(frames) - plan.start[:, None]
    progress = (time / plan.frames[:, None]).clamp(0, 1)
    smooth = progress.square() * (3 - 2 * progress)
    progress = progress + plan.ease[:, None] * (smooth - progress)
    has = plan.kinds.any(1, keepdim=True)
    log_zoom = plan.move[:, 2:3].log() * progress
    angle = -torch.deg2rad(plan.move[:, 3:]) * progress
    shift = -plan.move[:, :2] * WORLD_SIZE
    return CameraPath(
        turn=torch.polar(log_zoom.exp(), angle),
        shift=torch.complex(shift[:, :1] * progress, shift[:, 1:] * progress),
        moving=has & (time > 0) & (time <= plan.frames[:, None]),
        scale=(log_zoom * _OBJECT_POWER).exp(),
    )


def starting_jitter(jitter: Tensor, plan: CameraPlan, levels: int) -> Tensor:
    """Size jitter levels (B, O) that leave room for the zoom: the smallest before zooming in, and so on."""
    zoom = plan.move[:, 2:3]
    return torch.where(zoom > 1, 0, torch.where(zoom < 1, levels - 1, jitter))


def flow(position: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """How far objects at ``position`` (B, O, 2) go with a camera step (``CameraPath.steps``, each (B,))."""
    away = position - _CENTRE
    inner = _CENTRE - _SEAM
    taper = (_CENTRE - away.abs()).clamp(max=_SEAM) * (inner / _SEAM)
    away = away.sign() * torch.minimum(away.abs(), taper)
    step = torch.view_as_complex(away) * (factor - 1)[:, None] + offset[:, None]
    return torch.view_as_real(step)


def _signed(draw: Tensor, low: float, high: Tensor) -> Tensor:
    """A uniform number in [0, 1) as one in [low, high] of either sign."""
    twice = 2 * draw - 1
    return torch.where(twice < 0, -1.0, 1.0) * (low + (high - low) * twice.abs())
