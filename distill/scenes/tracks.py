"""Point tracks of scenes: points on objects, and points of the background."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .attributes import SceneAttributes
from .camera import CameraPath, CameraPlan
from .dynamics import Trajectories
from .shapes import BODY_RADIUS, EXTENTS, RING_BODY_RADII, WORLD_SIZE, DistanceTable
from .vocabulary import SHAPES, SIZE_JITTER, SIZE_RADII

_RING = SHAPES.index("ring")
#: Tracks per object where the camera rests, if there are enough. Where it moves, an object has one and the
#: background all others.
_TRACKS_PER_OBJECT = 3
#: How far outside points are followed, in frame sizes.
_FAR = 1.0


@dataclass(frozen=True)
class SceneTracks:
    """``SceneBatch`` fields of B clips with N tracks over T frames, on the CPU."""

    points: Tensor
    visible: Tensor
    track_object: Tensor
    pinned: Tensor
    dragged: Tensor


@dataclass(frozen=True)
class SceneMotion:
    """What moves in a batch of clips.

    Attributes:
        change_frame: (B,) first frame of the second segment.
        trajectories: positions of the objects.
        plan, camera: the camera's moves and its path.
    """

    change_frame: Tensor
    trajectories: Trajectories
    plan: CameraPlan
    camera: CameraPath


def object_radii(attributes: SceneAttributes) -> Tensor:
    """(B, O) object radii in world units, without zoom."""
    return torch.tensor(SIZE_RADII)[attributes.size] * torch.tensor(SIZE_JITTER)[attributes.jitter]


def used_slots(attributes: SceneAttributes) -> Tensor:
    """(B, O) bool: slots that hold an object."""
    return torch.arange(attributes.size.shape[1]) < attributes.count[:, None]


def lay_tracks(
    attributes: SceneAttributes,
    motion: SceneMotion,
    number: int,
    table: DistanceTable,
    generator: torch.Generator,
) -> SceneTracks:
    """Draws ``number`` tracks per clip: the first ones on objects, the others on the background.

    In clips with a camera move the background's points are free and lie about evenly over the picture: one in
    each cell of a grid, as ``streamgen.motion.tracks.camera`` has it, each at a moment of the move drawn for
    itself, and followed from there both ways, so that the picture has tracks everywhere until the move ends.
    Outside the picture, points are not visible.
    """
    moves = motion.plan.kinds.any(1)
    index = torch.arange(number)
    per_object = ((number - 1) // attributes.count).clamp(1, _TRACKS_PER_OBJECT)
    per_object = torch.where(moves, 1, per_object)[:, None]
    owner = index // per_object
    owner = torch.where(owner < attributes.count[:, None], owner, -1)
    rows = torch.arange(len(moves))[:, None]
    held = owner.clamp(min=0)

    draws = torch.rand(len(moves), number, 2, generator=generator)
    reach = _reach(attributes, held, draws[..., 0]) * (index % per_object != 0)
    angle = draws[..., 1] * 2 * torch.pi
    offset = reach[..., None] * torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    offset = offset[:, :, None] * motion.camera.scale[:, None, :, None]
    moving = (motion.trajectories.positions[rows, held] + offset) % WORLD_SIZE
    background = owner < 0
    still = _sown(motion, draws, generator)
    points = torch.where(background[..., None, None], still, moving)
    inside = ((points >= 0) & (points <= WORLD_SIZE)).all(-1)
    return SceneTracks(
        points=points / WORLD_SIZE,
        visible=inside & ~_covered(points, owner, attributes, motion, table),
        track_object=owner,
        pinned=background & ~moves[:, None],
        dragged=motion.trajectories.dragged[rows, held] & ~background[..., None],
    )


def _reach(attributes: SceneAttributes, held: Tensor, draws: Tensor) -> Tensor:
    """Distances (B, N) from the centres of the objects ``held`` (B, N), within their shapes."""
    rows = torch.arange(len(held))[:, None]
    rings = (attributes.shape == _RING).sum(1)[rows, held]
    body = BODY_RADIUS * draws.sqrt()
    band = RING_BODY_RADII[0] + (RING_BODY_RADII[1] - RING_BODY_RADII[0]) * draws
    # An object that is a ring in one segment only has its points where both shapes are.
    reach = torch.where(rings == 2, band, torch.where(rings == 1, BODY_RADIUS, body))
    return reach * object_radii(attributes)[rows, held]


def _sown(motion: SceneMotion, draws: Tensor, generator: torch.Generator) -> Tensor:
    """Paths (B, N, T, 2) of background points, in world units."""
    batch, number = draws.shape[:2]
    frames = motion.camera.turn.shape[1]
    side = max(1, round(number**0.5))
    cells = torch.rand(batch, max(number, side * side), generator=generator)[:, : side * side].argsort(1)
    cells = cells.repeat(1, number // (side * side) + 1)[:, :number]
    sown = torch.rand(batch, number, generator=generator)
    plan = motion.plan
    last = (plan.start + plan.frames).clamp(max=frames - 1)
    span = (last - plan.start).clamp(min=0)[:, None]
    when = (plan.start[:, None] + (sown * (span + 1)).long()).clamp(max=frames - 1)
    corner = torch.stack([cells % side, cells // side], -1)
    spread = (corner + draws) * (WORLD_SIZE / side)
    places = torch.where(plan.kinds.any(1)[:, None, None], spread, draws * WORLD_SIZE)
    return motion.camera.carried(places, when).clamp(-_FAR * WORLD_SIZE, (1 + _FAR) * WORLD_SIZE)


def _covered(
    points: Tensor, owner: Tensor, attributes: SceneAttributes, motion: SceneMotion, table: DistanceTable
) -> Tensor:
    """(B, N, T) bool: points (world units) under an object painted later than their own."""
    segment = (torch.arange(points.shape[2]) >= motion.change_frame[:, None]).long()
    apart = points[:, :, None] - motion.trajectories.positions[:, None]
    apart = (apart + WORLD_SIZE / 2) % WORLD_SIZE - WORLD_SIZE / 2
    radii = object_radii(attributes)[..., None] * motion.camera.scale[:, None]
    apart = apart / radii[:, None, ..., None]
    slot = torch.arange(radii.shape[1])
    later = (owner[..., None] < slot) & used_slots(attributes)[:, None]
    near = (apart.square().sum(-1) < max(EXTENTS) ** 2) & later[..., None]
    covered = torch.zeros_like(near)
    clip, _, slots, time = torch.nonzero(near, as_tuple=True)
    x, y = apart[near].unbind(-1)
    covered[near] = table.distances(attributes.shape[clip, segment[clip, time], slots], x, y) < 0
    return covered.any(2)
