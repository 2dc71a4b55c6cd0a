"""Drags that begin at an object as a stream shows it, as those of people do."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from models.motion_encoder import UNSPECIFIED, VISIBLE, Tracks

from ..evaluation.reading import torus_step
from ..running import Script
from ..scenes.dynamics import DRAG_FRAMES, DRAG_TRAVEL
from ..scenes.shapes import WORLD_SIZE

#: Part of the frame that drags keep to, and of a drag's length by which its middle may lie aside.
_ROOM, _BOW = (0.16, 0.84), 0.35
#: Points of an object that are told, at most; how far they lie from its middle, of 64, at most.
_POINTS, _AROUND = 3, 3.0
_IDS = 1024
#: Ways that are tried for one that stays inside; from which way in the frames before on an object moves.
_CANDIDATES, _MOVES = 8, 0.02


def with_drags(
    script: Script, start: int, centre: Tensor, there: Tensor, generator: torch.Generator
) -> Script:
    """The script with one object of each stream dragged from latent frame `start` on.

    Args:
        script: of streams that are asked for something.
        start: the latent frame that they come to, above 0.
        centre: where their objects were in the frames before, `(B, O, T, 2)` normalised.
        there: which of them can be dragged, `(B, O)`.
        generator: on the CPU, the only source of randomness.
    """
    asked, batch, there = script.asked, len(there), there.cpu()
    assert asked is not None
    draws = torch.rand(batch, there.shape[1], generator=generator)
    chosen = torch.where(there, draws, -1.0).argmax(1)
    dragged = torch.where(there.any(1), chosen, -1)
    track = centre[torch.arange(batch), chosen].cpu()
    path, length = drag_paths(track[:, -1], torus_step(track[:, 0], track[:, -1]), generator)
    total, first = path.shape[1], 4 * start - 3
    points = torch.zeros(batch, _POINTS, first + total, 2)
    around = (torch.rand(batch, _POINTS, 1, 2, generator=generator) - 0.5) * (2 * _AROUND / WORLD_SIZE)
    # the first one tells where its middle is
    around[:, 0] = 0
    points[:, :, first:] = path[:, None] + around
    state = torch.zeros(batch, _POINTS, first + total, dtype=torch.int8)
    said = (torch.arange(total) < length[:, None]) & (dragged >= 0)[:, None]
    some = torch.rand(batch, _POINTS, generator=generator) < 0.5
    some[:, 0] = True
    state[:, :, first:] = torch.where(said[:, None] & some[..., None], VISIBLE, UNSPECIFIED).to(torch.int8)
    ids = torch.rand(batch, _IDS, generator=generator).argsort(1)[:, :_POINTS]
    tracks = Tracks(points, state, torch.zeros(batch, _POINTS, dtype=torch.bool), ids)
    device = script.words.device
    tracks = Tracks(**{name: value.to(device) for name, value in vars(tracks).items()})
    return replace(script, tracks=tracks, asked=replace(asked, dragged=dragged.to(device), drag=None))


def drag_paths(here: Tensor, way: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paths `(B, T, 2)` of drags from `here (B, 2)` of objects that went `way (B, 2)`, normalised, and how
    many frames of each are told, `(B,)`. As in the world (`scenes.dynamics`) they bend, begin and end slowly
    or not, and half of them lead away from where the object went.
    """
    batch, (shortest, longest), (low, high) = len(here), DRAG_FRAMES, _ROOM
    draws = torch.rand(batch, 5, generator=generator)
    angles, lengths = torch.rand(2, batch, _CANDIDATES, generator=generator)
    against = torch.atan2(-way[:, 1], -way[:, 0])[:, None] + (angles - 0.5) * (2 * math.pi / 3)
    is_against = (draws[:, 0] < 0.5) & (way.norm(dim=1) > _MOVES)
    angle = torch.where(is_against[:, None], against, angles * 2 * math.pi)
    travel = (DRAG_TRAVEL[0] + (DRAG_TRAVEL[1] - DRAG_TRAVEL[0]) * lengths) / WORLD_SIZE
    here = here.clamp(low, high)
    step = travel[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    ends = (here[:, None] + step).clamp(low, high)
    # the first that is not cut short, else the longest
    moved = (ends - here[:, None]).norm(dim=-1)
    order = torch.arange(_CANDIDATES, 0, -1.0)
    best = torch.where(moved >= DRAG_TRAVEL[0] / WORLD_SIZE, 1 + order, moved).argmax(1)
    end = ends[torch.arange(batch), best]
    bow = (draws[:, 1:3] - 0.5) * (2 * _BOW) * (end - here).norm(dim=1, keepdim=True)
    control = ((here + end) / 2 + bow).clamp(low, high)
    length = shortest + (draws[:, 3] * (longest - shortest + 1)).long()
    progress = (torch.arange(longest) / (length[:, None] - 1)).clamp(0, 1)
    smooth = progress.square() * (3 - 2 * progress)
    s = (progress + draws[:, 4:] * (smooth - progress))[..., None]
    ends, middle = (1 - s).square() * here[:, None] + s.square() * end[:, None], 2 * s * (1 - s)
    return ends + middle * control[:, None], length
