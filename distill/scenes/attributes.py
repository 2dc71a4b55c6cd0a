"""What is in each clip: shapes, colours, sizes, motions, backgrounds, and what changes in the middle."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import SceneConfig
from .vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZE_JITTER, SIZES, held_out_indices

#: Order of the columns of ``SceneAttributes.changes``.
CHANGE_KINDS: tuple[str, ...] = ("colour", "shape", "background", "motion")


@dataclass(frozen=True)
class SceneAttributes:
    """Attribute indices of B clips with O object slots in two segments (before and after the change).

    Attributes:
        count: (B,) objects in the clip; slots from ``count`` on are unused (drawn values, never shown).
        shape, colour, motion: (B, 2, O).
        background: (B, 2).
        size, jitter: (B, O); these never change.
        changes: (B, 4) bool, columns ``CHANGE_KINDS``; all false in a clip without change.
        changed_object: (B,) the object that changes.
    """

    count: Tensor
    shape: Tensor
    colour: Tensor
    motion: Tensor
    background: Tensor
    size: Tensor
    jitter: Tensor
    changes: Tensor
    changed_object: Tensor


def _integers(high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, high, shape, generator=generator)


def _allowed_pairs(include_held_out: bool) -> Tensor:
    """(colours, shapes) float mask of the pairs that may be drawn."""
    allowed = torch.ones(len(COLOURS), len(SHAPES))
    if not include_held_out:
        for colour, shape in held_out_indices():
            allowed[colour, shape] = 0
    return allowed


def _draw_pairs(mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Colour and shape (B,) drawn uniformly from the true entries of a (B, colours, shapes) mask."""
    flat = torch.multinomial(mask.flatten(1), 1, generator=generator).squeeze(1)
    return flat // len(SHAPES), flat % len(SHAPES)


def _draw_objects(config: SceneConfig, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Colours and shapes (B, O); objects of one clip differ in colour, so that a caption tells them apart."""
    allowed = _allowed_pairs(config.include_held_out).expand(batch, -1, -1).clone()
    colours, shapes = [], []
    rows = torch.arange(batch)
    for _ in range(config.max_objects):
        colour, shape = _draw_pairs(allowed, generator)
        allowed[rows, colour] = 0
        colours.append(colour)
        shapes.append(shape)
    return torch.stack(colours, 1), torch.stack(shapes, 1)


def _draw_changes(config: SceneConfig, batch: int, may_change: bool, generator: torch.Generator) -> Tensor:
    """(B, 4) bool: which kinds change in each clip."""
    probability = config.change_probability if may_change else 0.0
    changed = torch.rand(batch, generator=generator) < probability
    double = torch.rand(batch, generator=generator) < config.double_change_probability
    ranks = torch.rand(batch, len(CHANGE_KINDS), generator=generator).argsort(1).argsort(1)
    return (ranks < 1 + double.long()[:, None]) & changed[:, None]


def _motions(config: SceneConfig, old: Tensor, generator: torch.Generator, change: bool) -> Tensor:
    """Motions of the shape of `old`, in a `change` other than those; as often as the config says."""
    if not config.motion_weights:
        if change:
            return _other(old, len(MOTIONS), generator)
        return _integers(len(MOTIONS), tuple(old.shape), generator)
    weights = torch.tensor([float(config.motion_weights.get(name, 1)) for name in MOTIONS])
    rows = weights.repeat(old.numel(), 1)
    if change:
        rows[torch.arange(len(rows)), old.flatten()] = 0
    return torch.multinomial(rows, 1, generator=generator).view(old.shape)


def _other(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Uniform among the other ``count - 1`` values."""
    return (old + 1 + torch.randint(0, count - 1, old.shape, generator=generator)) % count


def sample_attributes(
    config: SceneConfig, batch: int, generator: torch.Generator, may_change: bool = True
) -> SceneAttributes:
    """Draws the attributes of a batch of clips (CPU tensors), the generator being the only source of
    randomness; clips too short to change may not. Held-out pairs are excluded in both segments unless
    ``config.include_held_out``.
    """
    slots = config.max_objects
    weights = torch.tensor(config.object_weights, dtype=torch.float32)
    count = 1 + torch.multinomial(weights, batch, replacement=True, generator=generator)
    colour, shape = _draw_objects(config, batch, generator)
    motion = _motions(config, torch.zeros(batch, slots, dtype=torch.long), generator, change=False)
    background = _integers(len(BACKGROUNDS), (batch,), generator)
    changes = _draw_changes(config, batch, may_change, generator)
    target = (torch.rand(batch, generator=generator) * count).long()
    rows = torch.arange(batch)

    old_colour, old_shape = colour[rows, target], shape[rows, target]
    mask = _allowed_pairs(config.include_held_out).expand(batch, -1, -1).clone()
    colour_same = torch.arange(len(COLOURS)) == old_colour[:, None]
    shape_same = torch.arange(len(SHAPES)) == old_shape[:, None]
    mask *= (colour_same != changes[:, :1])[:, :, None]
    mask *= (shape_same != changes[:, 1:2])[:, None, :]
    for slot in range(slots):
        taken = torch.where(target == slot, -1, colour[:, slot])
        mask *= (torch.arange(len(COLOURS)) != taken[:, None])[:, :, None]
    new_colour, new_shape = colour.clone(), shape.clone()
    new_colour[rows, target], new_shape[rows, target] = _draw_pairs(mask, generator)

    new_background = torch.where(changes[:, 2], _other(background, len(BACKGROUNDS), generator), background)
    new_motion = motion.clone()
    old_motion = motion[rows, target]
    new_motion[rows, target] = torch.where(
        changes[:, 3], _motions(config, old_motion, generator, change=True), old_motion
    )
    return SceneAttributes(
        count=count,
        shape=torch.stack([shape, new_shape], 1),
        colour=torch.stack([colour, new_colour], 1),
        motion=torch.stack([motion, new_motion], 1),
        background=torch.stack([background, new_background], 1),
        size=_integers(len(SIZES), (batch, slots), generator),
        jitter=_integers(len(SIZE_JITTER), (batch, slots), generator),
        changes=changes,
        changed_object=target,
    )
