"""From encoded clips to training windows: which latent frames, captions, tracks and noise levels a sample
gets.

Kinds of window (see docs/decisions/training.md, 'Three kinds of window'): the start of a clip under
diffusion forcing; the start with a clean prefix; frame 0 followed by a later stretch (what a stream looks
like once the window has left its sink) with a clean prefix; and turnings, the few latent frames after a
change or after the start of a drag or camera move.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.context import ChunkPlan
from models.motion_encoder import OCCLUDED, UNSPECIFIED, VISIBLE, Tracks
from models.text_encoder import PAD, UNKNOWN

from .config import require
from .flow import FlowBatch, sample_sigmas
from .latent_cache import LatentClips

_IDS = 1024
# Of the background's points, about one is shown: a pin.
_PIN_CHANCE = 0.08
_CAMERA_TRACKS = 6
# Chunks of one latent frame behind a sink of one.
_SINGLE = ChunkPlan()


@dataclass(frozen=True)
class WindowConfig:
    """Shares and probabilities of the training windows.

    `frames` latent frames per window; `forcing_share` start windows with independent noise everywhere,
    `gap_share` windows with a jump after frame 0 (the rest are start windows with a clean prefix, of 1 or 2
    latent frames in `short_prefix_share` of them); latent cells within `object_reach` (of the picture) of a
    point on an object count `object_weight` times in the loss; `context_noise` is the highest level on a
    prefix; drops are for guidance; windows at turnings have `turning_frames` latent frames, of which the last
    `turning_targets` are targets.
    """

    frames: int = 10
    forcing_share: float = 0.45
    gap_share: float = 0.3
    min_gap_prefix: int = 4
    short_prefix_share: float = 0.5
    context_noise: float = 0.15
    clean_share: float = 0.5
    text_drop: float = 0.1
    target_text_drop: float = 0.08
    unknown_words: float = 0.02
    no_motion: float = 0.45
    motion_mask: float = 0.2
    recache_share: float = 0.5
    shift: float = 3.0
    object_weight: float = 4.0
    object_reach: float = 0.2
    turning_frames: int = 8
    turning_targets: int = 3

    def __post_init__(self) -> None:
        require(self.frames > self.min_gap_prefix, "windows.frames", f"> {self.min_gap_prefix}", self.frames)
        require(
            self.forcing_share + self.gap_share <= 1,
            "windows shares",
            "a sum <= 1",
            (self.forcing_share, self.gap_share),
        )
        require(
            0 < self.turning_targets < self.turning_frames - 1,
            "windows.turning_targets",
            "1 to turning_frames - 2",
            self.turning_targets,
        )


def window_batch(
    clips: LatentClips,
    size: int,
    config: WindowConfig,
    generator: torch.Generator,
    plan: ChunkPlan = _SINGLE,
) -> FlowBatch:
    """Draw `size` windows; a function of the generator's state alone.

    Clean prefixes, noise levels and captions change where chunks of the plan do, and gaps come behind its
    sink.
    """
    count, total = clips.latents.shape[:2]
    head = max(plan.sink_frames, plan.first_chunk_frames)
    rows = torch.randint(count, (size,), generator=generator)
    kind = torch.rand(size, generator=generator)
    forcing = kind < config.forcing_share
    gap = kind >= 1 - config.gap_share
    length = min(config.frames, total)
    offset = torch.randint(head, max(head + 1, total - length + head + 1), (size,), generator=generator)
    offset = torch.where(gap, offset, head)
    rest = offset[:, None] + torch.arange(length - head)
    frames = torch.cat([torch.arange(head).expand(size, head), rest], 1)
    x0 = clips.latents[rows[:, None], frames].float()
    low = torch.where(gap, config.min_gap_prefix, 0)
    prefix = low + (torch.rand(size, generator=generator) * (length - low)).long()
    # the first chunks after a picture decide which way things go, and nothing but the words tells
    short = torch.rand(size, generator=generator) < config.short_prefix_share
    brief = torch.tensor([plan.start(i) for i in range(3)])[torch.randint(1, 3, (size,), generator=generator)]
    prefix = torch.where(short & ~gap, brief.clamp(max=length - 1), prefix)
    prefix = torch.where(forcing, 0, prefix)
    prefix, segment = _segments(clips.switch[rows].long(), frames, (prefix, low), forcing, config, generator)
    starts = chunk_starts(plan, length)
    clean = torch.arange(length) < starts[prefix][:, None]
    sigma = sample_sigmas((size, length), config.shift, generator)[:, starts]
    context = torch.rand(size, 1, generator=generator) * config.context_noise
    context = context * (torch.rand(size, 1, generator=generator) >= config.clean_share)
    sigma = torch.where(clean, context, sigma)
    words = _with_unknown(clips.words[rows].long(), config.unknown_words, generator)
    return FlowBatch(
        x0,
        torch.randn(x0.shape, generator=generator),
        sigma,
        (~clean).float(),
        _focus(clips, rows, frames, config),
        torch.cat([words, torch.zeros_like(words[:, :1])], 1),
        segment[:, starts],
        window_tracks(clips, rows, frames, config, generator),
    )


def chunk_starts(plan: ChunkPlan, count: int) -> Tensor:
    """For each of `count` latent frames of a window the first one of its chunk, `(count,)`."""
    return torch.tensor([plan.start(plan.index_of(i)) for i in range(count)])


def turning_batch(
    clips: LatentClips, size: int, config: WindowConfig, generator: torch.Generator
) -> FlowBatch:
    """Draw `size` windows that end soon after something new begins: a change of caption, a drag, a camera
    move; for chunks of one latent frame.

    What follows a turning is told by the words or the track alone and lasts a few latent frames, which
    windows at random places rarely show. All before it is clean and read under the new caption, as a stream
    has it that has just recached; the last `turning_targets` latent frames are the targets.
    """
    total = clips.latents.shape[1]
    turning = turning_frames(clips)
    latest = total - config.turning_targets
    rows = (turning <= latest).any(1).nonzero()[:, 0]
    require(len(rows) > 0, "scenes.change_probability, scenes.drag_probability", "clips with turnings", 0)
    rows = rows[torch.randint(len(rows), (size,), generator=generator)]
    order = torch.rand(size, turning.shape[1], generator=generator) + (turning[rows] > latest)
    event = turning[rows].gather(1, order.argmin(1, keepdim=True))
    length = min(config.turning_frames, total)
    before = torch.arange(length) - (length - config.turning_targets)
    # near the start of a clip there is less before the turning: the window then begins at frame 0 and is
    # longer behind it
    frames = event + before + (1 - before[1] - event).clamp(min=0)
    frames[:, 0] = 0
    prefix = (frames < event).sum(1)
    clean = torch.arange(frames.shape[1]) < prefix[:, None]
    sigma = sample_sigmas(frames.shape, config.shift, generator)
    context = torch.rand(size, 1, generator=generator) * config.context_noise
    context = context * (torch.rand(size, 1, generator=generator) >= config.clean_share)
    switch = clips.switch[rows, None].long()
    segment = ((frames >= switch) | (event >= switch)).long()
    dropped = torch.rand(size, 1, generator=generator) < config.text_drop
    words = _with_unknown(clips.words[rows].long(), config.unknown_words, generator)
    x0 = clips.latents[rows[:, None], frames].float()
    return FlowBatch(
        x0,
        torch.randn(x0.shape, generator=generator),
        torch.where(clean, context, sigma),
        (~clean).float(),
        _focus(clips, rows, frames, config),
        torch.cat([words, torch.zeros_like(words[:, :1])], 1),
        torch.where(dropped, 2, segment),
        window_tracks(clips, rows, frames, config, generator),
    )


def turning_frames(clips: LatentClips) -> Tensor:
    """Latent frames `(N, 3)` in which a clip's caption changes, in which a drag begins and in which a camera
    move does; the number of latent frames where there is none.
    """
    total = clips.latents.shape[1]

    def begins(active: Tensor) -> Tensor:
        # latent frame l > 0 holds pixel frames 4l - 3 .. 4l
        start = (active.int().argmax(1) + 3) // 4
        return torch.where(active.any(1), start.clamp(min=1), total)

    return torch.stack([clips.switch.long(), begins(clips.dragged.any(1)), begins(clips.camera)], 1)


def image_batch(
    images: LatentClips, size: int, config: WindowConfig, generator: torch.Generator
) -> FlowBatch:
    """Single frames: the first chunk of a stream, with text only."""
    rows = torch.randint(len(images.latents), (size,), generator=generator)
    x0 = images.latents[rows].float()
    words = _with_unknown(images.words[rows, :1].long(), config.unknown_words, generator)
    dropped = torch.rand(size, 1, generator=generator) < config.text_drop
    nothing = torch.zeros(size, 1, 1)
    tracks = Tracks(
        nothing[..., None].expand(-1, -1, -1, 2),
        nothing.to(torch.int8),
        nothing[..., 0].bool(),
        nothing[..., 0].long(),
    )
    return FlowBatch(
        x0,
        torch.randn(x0.shape, generator=generator),
        sample_sigmas((size, 1), config.shift, generator),
        torch.ones(size, 1),
        _focus(images, rows, torch.zeros(size, 1, dtype=torch.long), config),
        torch.cat([words, torch.zeros_like(words)], 1),
        dropped.long(),
        tracks,
    )


def teacher_batch(
    clips: LatentClips,
    size: int,
    frames: int,
    start_share: float,
    config: WindowConfig,
    generator: torch.Generator,
) -> FlowBatch:
    """Draw `size` windows of `frames` latent frames at one noise level each, for a bidirectional network.

    They begin at any latent frame of a clip, `start_share` of them at frame 0: nothing tells a latent of four
    frames to be an image latent, so that no window has to be encoded anew. Text and tracks are dropped
    independently of each other.
    """
    total = clips.latents.shape[1]
    rows = torch.randint(len(clips.latents), (size,), generator=generator)
    offset = torch.randint(0, total - frames + 1, (size, 1), generator=generator)
    offset[torch.rand(size, generator=generator) < start_share] = 0
    at = offset + torch.arange(frames)
    x0 = clips.latents[rows[:, None], at].float()
    segment = (at >= clips.switch[rows, None].long()).long()
    segment[torch.rand(size, generator=generator) < config.text_drop] = 2
    words = _with_unknown(clips.words[rows].long(), config.unknown_words, generator)
    return FlowBatch(
        x0,
        torch.randn(x0.shape, generator=generator),
        sample_sigmas((size, 1), config.shift, generator).expand(size, frames),
        torch.ones(size, frames),
        _focus(clips, rows, at, config),
        torch.cat([words, torch.zeros_like(words[:, :1])], 1),
        segment,
        window_tracks(clips, rows, at, config, generator, whole=True),
    )


def _segments(
    switch: Tensor,
    frames: Tensor,
    prefixes: tuple[Tensor, Tensor],
    forcing: Tensor,
    config: WindowConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Clean prefix `(B,)` and caption of each latent frame `(B, T)`: 0 before the change, 1 after, 2 none.

    Where a clip changes inside the window, part of the samples are made as a stream that has just recached:
    everything before the change is clean context, read under the new caption. Where it changes in the gap,
    part of them as one that recached a while ago: all is read under the new caption. `prefixes` are the drawn
    clean prefix and the shortest one allowed, each `(B,)`.
    """
    prefix, shortest = prefixes
    size, length = frames.shape
    after = frames >= switch[:, None]
    position = after.int().argmax(1)
    at_change = after.any(1) & (frames.gather(1, position[:, None])[:, 0] == switch)
    in_gap = after.any(1) & ~at_change
    chosen = torch.rand(size, generator=generator) < config.recache_share
    recache = chosen & at_change & (position >= shortest.clamp(min=1))
    prefix = torch.where(recache, position, prefix)
    segment = torch.where((recache | chosen & in_gap)[:, None], 1, after.long())
    drop = torch.rand(size, generator=generator)
    segment[drop < config.text_drop] = 2
    target_only = (drop > 1 - config.target_text_drop) & ~forcing
    targets = torch.arange(length) >= prefix[:, None]
    return prefix, torch.where(target_only[:, None] & targets, 2, segment)


def _focus(clips: LatentClips, rows: Tensor, frames: Tensor, config: WindowConfig) -> Tensor:
    """Weight of each latent cell `(B, T, h, w)`: more where an object is in a latent frame's outer pictures.

    Texture fills most of the picture and cannot be predicted; what the prompt speaks of is small.
    """
    height, width = clips.latents.shape[-2:]
    if config.object_weight == 1.0:
        return torch.ones(*frames.shape, height, width)
    last = frames * 4
    times = torch.stack([(last - 3).clamp(min=0), last], -1)
    points = clips.points[rows[:, None, None], :, times].float()
    # own clips have points that come and go; where one is not, it is outside of the picture
    inside = ((points >= 0) & (points <= 1)).all(-1)
    on_object = ~clips.background[rows][:, None, None, :] & inside
    near = []
    for size, axis in ((height, 1), (width, 0)):
        centres = (torch.arange(size) + 0.5) / size
        # objects wrap around the borders, so distances do as well
        apart = (points[..., axis, None] - centres + 0.5).remainder(1.0).sub(0.5).abs()
        near.append((apart < config.object_reach) & on_object[..., None])
    cells = (near[0][..., :, None] & near[1][..., None, :]).any(3).any(2)
    return torch.where(cells, config.object_weight, 1.0)


def _with_unknown(words: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    hit = (torch.rand(words.shape, generator=generator) < probability) & (words != PAD)
    return torch.where(hit, UNKNOWN, words)


def window_tracks(
    clips: LatentClips,
    rows: Tensor,
    frames: Tensor,
    config: WindowConfig,
    generator: torch.Generator,
    whole: bool = False,
) -> Tracks:
    """Tracks as a user gives them: few, beginning and ending anywhere, some chunks silent; always there where
    an object is dragged or the camera moves.

    They cover pixel frame 0 and four of each later latent frame in `frames (B, T)`, or four of each if
    `whole`: then nothing is said of those before pixel frame 0.
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
    silent = torch.rand(size, 1, generator=generator) < config.no_motion
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
    masked &= torch.rand(size, 1, generator=generator) < config.motion_mask
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
