"""From encoded clips to training windows: which latent frames a sample shows, which of them it is to make,
and under which captions.

A window is teacher-forced: every target sees the frames before it as a stream has committed them, so that one
pass over a whole clip trains all its latent frames (arXiv 2412.07772, with clean context). `Layout` says what
is shown; the functions that make one are the kinds of a causal stage's mixture (docs/decisions/training.md,
'Whole clips'); `flow_batch` adds noise, words and tracks.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.context import ChunkPlan
from models.text_encoder import PAD, UNKNOWN

from .config import Checked, Count, NonNegative, Positive, Several, Share, require
from .flow import Committed, FlowBatch, sample_sigmas
from .latent_cache import LatentClips
from .scenes import MOTIONS
from .window_tracks import window_tracks

#: Segments of `FlowBatch.words` behind the first: after the change, and no text.
_AFTER, _NO_TEXT = 1, 2
# Chunks of one latent frame behind a sink of one.
_SINGLE = ChunkPlan()


@dataclass(frozen=True)
class WindowConfig(Checked, section="windows"):
    """Shares and probabilities of the training windows.

    Attributes:
        frames: latent frames of a window, null for whole clips. Where clips are longer, `gap_share` of the
            windows show frame 0 (the plan's sink) and a later stretch of the clip, as a stream has it whose
            window has left its sink; their first `min_gap_prefix` frames are context alone.
        beginning_frames: of the windows that begin a clip; `pairs_share` of them have two objects or more.
        change_frames: targets behind a change of caption.
        keep_share: of whole clips those with a change of caption, each frame read under its own one, as in a
            stream that keeps its cache; the others have none.
        context_noise: highest noise level of what was committed; `clean_share` of the samples have none.
            forcing: `teacher`, one level for all that a sample has committed, or `diffusion`, one for each
            chunk (diffusion forcing, arXiv 2407.01392).
        text_drop: samples without any text; target_text_drop: chunks that are to be made without text behind
            a past that was committed with it, as the branch of guidance without text; target_motion_drop:
            the same for tracks.
        unknown_words: words taken for unknown.
        no_motion: windows without tracks, drags and camera moves apart; beginnings and changes are so in .8
            at least, since tracks would give away what the words have to tell. motion_mask: windows in which
            about a third of the latent frames are silent.
        shift: of noise levels, towards noise.
        object_weight: of latent cells within `object_reach` (of the picture) of a point on an object.
        turning_weight: of latent frames in which a path turns.
        copies: of the targets behind each past, at levels and with noise of their own: what was committed is
            computed once for all of them.
    """

    frames: Count | None = None
    gap_share: Share = 0.3
    min_gap_prefix: int = 4
    beginning_frames: Several = 3
    pairs_share: Share = 0.5
    change_frames: Count = 6
    keep_share: Share = 0.15
    context_noise: Share = 0.15
    clean_share: Share = 0.5
    forcing: Literal["teacher", "diffusion"] = "teacher"
    text_drop: Share = 0.03
    target_text_drop: Share = 0.12
    target_motion_drop: Share = 0.1
    unknown_words: Share = 0.02
    no_motion: Share = 0.5
    motion_mask: Share = 0.2
    shift: Positive = 3.0
    object_weight: Positive = 4.0
    object_reach: NonNegative = 0.2
    turning_weight: Positive = 2.0
    copies: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.min_gap_prefix
        require(self.frames is None or self.frames > least, "windows.frames", f"> {least}", self.frames)

    @property
    def silence(self) -> tuple[float, float]:
        """Shares of windows without tracks, and of those that are silent in parts."""
        return self.no_motion, self.motion_mask

    @property
    def quiet(self) -> tuple[float, float]:
        """The same where the words alone are to tell."""
        return max(self.no_motion, 0.8), self.motion_mask


@dataclass(frozen=True)
class Layout:
    """What B windows show.

    Attributes:
        rows: clips, `(B,)`.
        frames: latent frames of these, `(B, P)`, as a stream has committed them; the last T are targets, too.
        told: caption that each was committed under, `(B, P)`: 0 before the change, 1 after it.
        segment: caption of each target, `(B, T)`.
        weight: of each target in the loss, `(B, T)`; 0 for none.
    """

    rows: Tensor
    frames: Tensor
    told: Tensor
    segment: Tensor
    weight: Tensor


def chunk_starts(plan: ChunkPlan, count: int) -> Tensor:
    """For each of `count` latent frames of a window the first one of its chunk, `(count,)`."""
    return torch.tensor([plan.start(plan.index_of(i)) for i in range(count)])


def first_frames(images: LatentClips, size: int, generator: torch.Generator) -> Layout:
    """The first chunks of streams: single frames, with text only."""
    rows = torch.randint(len(images.latents), (size,), generator=generator)
    nothing = torch.zeros(size, 1, dtype=torch.long)
    return Layout(rows, nothing, nothing, nothing, torch.ones(size, 1))


def beginnings(
    clips: LatentClips, size: int, config: WindowConfig, generator: torch.Generator, plan: ChunkPlan = _SINGLE
) -> Layout:
    """The first chunks of clips: which way things go is told by the words alone, and all else follows."""
    length = _whole_chunks(min(config.beginning_frames, clips.latents.shape[1]), plan)
    quiet = (clips.switch >= length).nonzero()[:, 0]
    several = quiet[(clips.motions[quiet, 0] >= 0).sum(1) > 1]
    rows = _drawn(quiet if len(quiet) else torch.arange(len(clips.switch)), size, generator)
    if len(several):
        pairs = torch.rand(size, generator=generator) < config.pairs_share
        rows = torch.where(pairs, _drawn(several, size, generator), rows)
    frames = torch.arange(length).expand(size, length)
    segment = _own_caption(clips, rows, frames)
    return Layout(rows, frames, segment, segment, torch.ones(size, length))


def whole_clips(
    clips: LatentClips, size: int, config: WindowConfig, generator: torch.Generator, plan: ChunkPlan = _SINGLE
) -> Layout:
    """Whole clips, or windows of them; every latent frame is a target."""
    total = clips.latents.shape[1]
    changing = (clips.switch < total).nonzero()[:, 0]
    steady = (clips.switch >= total).nonzero()[:, 0]
    rows = _drawn(steady if len(steady) else changing, size, generator)
    if len(changing):
        kept = torch.rand(size, generator=generator) < config.keep_share
        rows = torch.where(kept, _drawn(changing, size, generator), rows)
    length = _whole_chunks(min(config.frames or total, total), plan)
    head = max(plan.sink_frames, plan.first_chunk_frames)
    gap = torch.rand(size, generator=generator) < config.gap_share
    later = torch.randint(0, max(1, total - length + 1), (size,), generator=generator)
    shift = torch.where(gap, later, 0)[:, None]
    at = torch.arange(length).expand(size, length)
    frames = torch.where(at < head, at, at + shift)
    weight = ((shift == 0) | (at >= config.min_gap_prefix)).float()
    weight = weight[:, chunk_starts(plan, length)]
    segment = _own_caption(clips, rows, frames)[:, chunk_starts(plan, length)]
    return Layout(rows, frames, segment, segment, weight)


def changes(
    clips: LatentClips, size: int, config: WindowConfig, generator: torch.Generator, plan: ChunkPlan = _SINGLE
) -> Layout:
    """What follows a change of caption, behind a past that is read under the new one: a stream that has just
    recached. For chunks of one latent frame.

    All windows of a batch have equally many frames before the change, which is those that a stream has in
    its context: near the start of a clip there are fewer.

    Raises:
        ConfigError: no clip changes where enough of it follows.
    """
    total = clips.latents.shape[1]
    possible = ((clips.switch >= 1) & (clips.switch <= total - config.change_frames)).nonzero()[:, 0]
    require(len(possible) > 0, "scenes.change_probability", "clips that change", 0)
    switch = clips.switch[possible].long()
    before = switch.clamp(max=plan.context_frames)
    wanted = before[torch.randint(len(before), (1,), generator=generator)]
    rows = _drawn(possible[before == wanted], size, generator)
    switch = clips.switch[rows, None].long()
    past = torch.arange(int(wanted))
    # the sink first, then the window right before the change
    behind = switch - int(wanted) + past
    context = torch.where(past < plan.sink_frames, past, behind)
    frames = torch.cat([context, switch + torch.arange(config.change_frames)], 1)
    told = torch.full_like(frames, _AFTER)
    targets = torch.ones(size, config.change_frames)
    return Layout(rows, frames, told, told[:, -config.change_frames :], targets)


def flow_batch(
    clips: LatentClips,
    layout: Layout,
    config: WindowConfig,
    silence: tuple[float, float],
    generator: torch.Generator,
    plan: ChunkPlan = _SINGLE,
) -> FlowBatch:
    """What a layout shows, with noise, words and tracks; a function of the generator's state alone.

    Noise levels and dropped captions change where chunks of the plan do. `silence` is as in `window_tracks`.
    """
    rows, frames, copies = layout.rows, layout.frames, config.copies
    size, count = layout.weight.shape
    chunks = chunk_starts(plan, frames.shape[1])
    starts = chunks[-count:]
    # of all copies, one after the other
    starts = (starts - starts[0] + count * torch.arange(copies)[:, None]).flatten()
    targets = copies * count
    x0 = clips.latents[rows[:, None], frames].float()
    sigma = sample_sigmas((size, targets), config.shift, generator)[:, starts]
    levels = frames.shape[1] if config.forcing == "diffusion" else 1
    level = torch.rand(size, levels, generator=generator) * config.context_noise
    level = level[:, chunks if levels > 1 else [0]]
    level = level * (torch.rand(size, 1, generator=generator) >= config.clean_share)
    nothing = torch.rand(size, 1, generator=generator) < config.text_drop
    untold = torch.rand(size, targets, generator=generator)[:, starts] < config.target_text_drop
    mute = torch.rand(size, targets, generator=generator)[:, starts] < config.target_motion_drop
    words = _with_unknown(clips.words[rows].long(), config.unknown_words, generator)
    turning = clips.turning[rows[:, None], :, frames[:, -count:]].any(-1)
    committed = Committed(
        torch.randn(x0.shape, generator=generator),
        level.expand(frames.shape),
        torch.where(nothing, _NO_TEXT, layout.told),
        mute,
    )
    weight = torch.where(turning, config.turning_weight * layout.weight, layout.weight)
    counts = {name: copies * number for name, number in _counts(clips, layout, turning).items()}
    return FlowBatch(
        x0,
        torch.randn(size, targets, *x0.shape[2:], generator=generator),
        sigma,
        weight.repeat(1, copies),
        _focus(clips, rows, frames[:, -count:], config).repeat(1, copies, 1, 1),
        torch.cat([words, torch.full_like(words[:, :1], PAD)], 1),
        torch.where(nothing | untold, _NO_TEXT, layout.segment.repeat(1, copies)),
        window_tracks(clips, rows, frames, silence, generator),
        committed=committed,
        counts=counts,
        copies=copies,
    )


def image_batch(
    images: LatentClips, size: int, config: WindowConfig, generator: torch.Generator
) -> FlowBatch:
    """`first_frames` with noise and words; they have no past and one caption, `words (B, 2, L)`."""
    layout = first_frames(images, size, generator)
    words = _with_unknown(images.words[layout.rows, :1].long(), config.unknown_words, generator)
    dropped = torch.rand(size, 1, generator=generator) < config.text_drop + config.target_text_drop
    x0 = images.latents[layout.rows].float()
    return FlowBatch(
        x0,
        torch.randn(x0.shape, generator=generator),
        sample_sigmas((size, 1), config.shift, generator),
        layout.weight,
        _focus(images, layout.rows, layout.frames, config),
        torch.cat([words, torch.full_like(words, PAD)], 1),
        dropped.long(),
        window_tracks(images, layout.rows, layout.frames, (1.0, 0.0), generator),
        counts={"targets": size},
    )


def teacher_batch(
    clips: LatentClips,
    size: int,
    frames: int,
    start_share: float,
    config: WindowConfig,
    silence: tuple[float, float],
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
    segment = _own_caption(clips, rows, at)
    dropped = torch.rand(size, generator=generator) < config.text_drop + config.target_text_drop
    segment[dropped] = _NO_TEXT
    words = _with_unknown(clips.words[rows].long(), config.unknown_words, generator)
    turning = clips.turning[rows[:, None], :, at].any(-1)
    return FlowBatch(
        x0,
        torch.randn(x0.shape, generator=generator),
        sample_sigmas((size, 1), config.shift, generator).expand(size, frames),
        torch.where(turning, config.turning_weight, 1.0),
        _focus(clips, rows, at, config),
        torch.cat([words, torch.full_like(words[:, :1], PAD)], 1),
        segment,
        window_tracks(clips, rows, at, silence, generator, whole=True),
    )


def _whole_chunks(count: int, plan: ChunkPlan) -> int:
    """The most latent frames, at most `count`, that are whole chunks from the first one on."""
    return plan.start(plan.index_of(count)) or count


def _drawn(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (size,), generator=generator)]


def _own_caption(clips: LatentClips, rows: Tensor, frames: Tensor) -> Tensor:
    """The caption of each latent frame's own time, `(B, T)`."""
    return (frames >= clips.switch[rows, None].long()).long()


def _counts(clips: LatentClips, layout: Layout, turning: Tensor) -> dict[str, int]:
    """How many targets there are, how many of them have a turn, and in how many objects move how."""
    targets = layout.weight > 0
    frames = layout.frames[:, -targets.shape[1] :]
    after = _own_caption(clips, layout.rows, frames)
    motions = clips.motions[layout.rows[:, None], after].long()
    found = torch.bincount(motions[targets].flatten() + 1, minlength=len(MOTIONS) + 1).tolist()
    counts = {"targets": int(targets.sum()), "turning": int((turning & targets).sum())}
    return counts | dict(zip(MOTIONS, found[1:], strict=True))


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
