"""Tracks of training windows as a user gives them: few, beginning and ending anywhere, some chunks silent."""

import torch
from torch import Tensor

from models.motion_encoder import OCCLUDED, UNSPECIFIED, VISIBLE, Tracks

from .latent_cache import LatentClips

_IDS = 1024
# Of the background's points, about one is shown: a pin.
_PIN_CHANCE = 0.08
_CAMERA_TRACKS = 6


def window_tracks(
    clips: LatentClips,
    rows: Tensor,
    frames: Tensor,
    silence: tuple[float, float],
    generator: torch.Generator,
    whole: bool = False,
) -> Tracks:
    """Tracks of the latent frames `frames (B, T)` of the clips `rows (B,)`; always there where an object is
    dragged or the camera moves.

    They cover pixel frame 0 and four of each later latent frame, or four of each if `whole`: then nothing is
    said of those before pixel frame 0. `silence` are the shares of the windows without tracks (but for drags
    and camera moves), and of those in which about a third of the latent frames are silent.
    """
    size, count = len(rows), clips.points.shape[1]
    # latent frame l > 0 holds pixel frames 4l - 3 .. 4l
    group = (frames[..., None] * 4 + torch.arange(-3, 1)).flatten(1)
    if not whole:
        group = group[:, 3:]
    latent = (torch.arange(group.shape[1]) + (0 if whole else 3)) // 4
    pixel = group.clamp(min=0)
    where = (rows[:, None, None], torch.arange(count)[None, :, None], pixel[:, None])
    points, visible, dragged = clips.points[where].float(), clips.visible[where], clips.dragged[where]
    background, pinned = clips.background[rows], clips.pinned[rows]
    moving = clips.camera[rows[:, None], pixel]
    inside = ((points >= 0) & (points <= 1)).all(-1)
    # points of the background while the camera carries them, as `streamgen.motion.tracks.camera` has them
    carried = (background & ~pinned)[..., None] & moving[:, None] & inside
    told = dragged | carried
    has_drag = dragged.any(-1)
    chance = torch.where(background, _PIN_CHANCE, torch.where(has_drag, 0.7, 0.45))
    keep = torch.rand(size, count, generator=generator) < chance
    silent = torch.rand(size, 1, generator=generator) < silence[0]
    # who drags one thing mostly says nothing of the others
    keep &= ~silent | has_drag
    # a drag that no track tells of could not be predicted
    first = has_drag & (has_drag.cumsum(1) == 1)
    keep |= first & ~(keep & has_drag).any(1, keepdim=True)
    keep |= _camera_tracks(carried, generator)
    length = pixel.shape[1]
    ends = (torch.rand(size, count, 2, generator=generator) * length).long().sort(-1).values
    always = torch.rand(size, count, generator=generator) < 0.5
    time = torch.arange(length)
    on = always[..., None] | ((time >= ends[..., :1]) & (time <= ends[..., 1:]))
    brief = told.any(-1) & (torch.rand(size, count, generator=generator) < 0.6)
    on = torch.where(brief[..., None], told, on | told)
    on &= keep[..., None] & inside
    masked = torch.rand(size, frames.shape[1], generator=generator) < 0.35
    masked &= torch.rand(size, 1, generator=generator) < silence[1]
    on &= ~masked[:, latent][:, None] | told
    on &= (group >= 0)[:, None]
    # who moves a camera does not look what lies where: half of the time, no point of its field is hidden
    visible |= carried & (torch.rand(size, 1, 1, generator=generator) < 0.5)
    state = torch.where(on, torch.where(visible, VISIBLE, OCCLUDED), UNSPECIFIED).to(torch.int8)
    ids = torch.rand(size, _IDS, generator=generator).argsort(1)[:, :count]
    return Tracks(points, state, pinned, ids)


def _camera_tracks(carried: Tensor, generator: torch.Generator) -> Tensor:
    """Which tracks `(B, N)` tell of a camera move, of those it carries in some frames of `carried (B, N, T)`.

    A share of them drawn per window, and at least `_CAMERA_TRACKS`, those it carries longest: a move that no
    track tells of could not be predicted.
    """
    size, count = carried.shape[:2]
    share = 0.4 + 0.6 * torch.rand(size, 1, generator=generator)
    draws = torch.rand(size, count, generator=generator)
    duration = carried.sum(-1)
    rank = (duration + draws).argsort(1, descending=True).argsort(1)
    return ((draws < share) | (rank < _CAMERA_TRACKS)) & (duration > 0)
