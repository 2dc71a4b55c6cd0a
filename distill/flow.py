"""Flow matching over windows of latent frames: network bundle, noise levels, loss and guidance."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from models.causal_dit import CausalDiT, TextContext
from models.context import AttentionContext, BidirectionalContext, ChunkPlan, MaskedContext, SequenceFrame
from models.motion_encoder import MotionEncoder, Tracks
from models.writer import written
from streamgen.engine.guidance import joint_guidance
from streamgen.engine.scheduler import add_noise, velocity_target

from .packed import PackedContext
from .sequence import velocity_of
from .words.heads import AttributeHeads
from .words.told import ToldBatch


@dataclass(frozen=True)
class Committed:
    """How the P frames of a batch were committed: with `noise (B, P, C, h, w)` at levels `sigma (B, P)` under
    captions `segment (B, P)`, and with their tracks; `mute (B, T)` are targets made without tracks.
    """

    noise: Tensor
    sigma: Tensor
    segment: Tensor
    mute: Tensor


@dataclass(frozen=True)
class FlowBatch:
    """One micro-batch: P latent frames, of which the last ones are targets, each of them `copies` times: the
    T targets are the last T / copies frames in order, then the same once more under other noise.

    `x0 (B, P, C, h, w)`; `noise (B, T, C, h, w)`; `sigma (B, T)` noise level of each target; `weight (B, T)`
    and `focus (B, T, h, w)` the shares of frames and of cells in the loss; `words (B, S, L)` int64 ids with
    the last segment empty (no text); `segment (B, T)`; `tracks` over `1 + 4 (P - 1)` pixel frames, or over
    `4 P` with nothing said of those before frame 0. With `committed` each target sees the frames before it as
    a stream has committed them (teacher forcing); without, P is T, and the plan says which noisy ones it
    sees. `told` captions for the heads of the text encoder, None for none; `counts` how many targets there
    are of what, for the log.
    """

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    weight: Tensor
    focus: Tensor
    words: Tensor
    segment: Tensor
    tracks: Tracks
    committed: Committed | None = None
    told: ToldBatch | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    copies: int = 1

    @property
    def targets(self) -> Tensor:
        """Clean targets `(B, T, C, h, w)`."""
        return self.of_targets(self.x0)

    def of_targets(self, x: Tensor) -> Tensor:
        """Of what is said of each frame, `(B, P, ...)`, that of the targets, `(B, T, ...)`."""
        last = x[:, -(self.noise.shape[1] // self.copies) :]
        return last if self.copies == 1 else torch.cat([last] * self.copies, 1)

    def past(self, motion: Tensor) -> "Past | None":
        """What targets see, with `motion (B, P, channels, h, w)`; None without teacher forcing."""
        told = self.committed
        if told is None:
            return None
        x = add_noise(self.x0, told.noise, told.sigma)
        return Past(x, told.sigma, told.segment, motion, self.copies)

    def motion_of_targets(self, motion: Tensor) -> Tensor:
        """Of `motion (B, P, channels, h, w)` that of the targets: none where they are mute."""
        own = self.of_targets(motion)
        if self.committed is None:
            return own
        return own * (~self.committed.mute)[..., None, None, None]


@dataclass(frozen=True)
class Past:
    """The frames of windows as a stream has committed them, and perhaps P - T before these: `x (B, P, C, h,
    w)` at noise levels `sigma (B, P)`, under captions `segment (B, P)` and with `motion (B, P, channels, h,
    w)`; both may be left out where P is T and they are those of the windows. Where targets are `copies` of
    fewer frames, each copy sees the past and itself.
    """

    x: Tensor
    sigma: Tensor
    segment: Tensor | None = None
    motion: Tensor | None = None
    copies: int = 1


class FlowNetwork(nn.Module):
    """DiT with its text and motion encoder, over whole sequences of latent frames under a chunk plan.

    The text encoder turns ids `(..., L)` into embeddings `(..., words, text_dim)`; ids that are all 0 are no
    text. `heads`, where there are some, read from these what captions say of each object. A plan whose one
    chunk holds the whole sequence makes it bidirectional: a teacher or a critic.
    """

    def __init__(
        self, dit: CausalDiT, text_encoder: nn.Module, motion_encoder: MotionEncoder, plan: ChunkPlan
    ) -> None:
        super().__init__()
        self.dit, self.text_encoder, self.motion_encoder = dit, text_encoder, motion_encoder
        self.plan = plan
        self.heads: AttributeHeads | None = None
        self._contexts: dict[tuple[int, int, int, int, int, str], AttentionContext] = {}

    def text(self, words: Tensor, segment: Tensor) -> TextContext:
        """Keys and values of captions `words (B, S, L)`, read by latent frames as `segment (B, T)` says."""
        return self.dit.embed_text(self.text_encoder(words), segment)

    def told_loss(self, told: ToldBatch | None) -> tuple[Tensor | float, dict[str, Tensor | float]]:
        """What is to be added to a loss so that the text encoder, trained along, keeps telling objects apart:
        the heads' weighted loss on captions, and how it and the least right attribute stand; 0 and nothing
        without heads or captions.
        """
        if self.heads is None or told is None:
            return 0.0, {}
        loss, right = self.heads(self.text_encoder(told.ids), told)
        least = torch.stack(list(right.values())).min()
        return self.heads.weight * loss, {"words_loss": loss.detach(), "words_least_right": least}

    def motion(self, tracks: Tracks, grid: tuple[int, int]) -> Tensor:
        """Motion latents `(B, T, channels, *grid)` of tracks over `1 + 4 (T - 1)` or `4 T` pixel frames."""
        alone = tracks.state.shape[2] % self.motion_encoder.config.temporal == 1
        latents: Tensor = self.motion_encoder(tracks, grid, first=alone)
        return latents

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor,
        text: TextContext,
        motion: Tensor,
        guidance: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Velocity of `x (B, T, C, h, w)` at noise levels `sigma (B, T)`, float32.

        Args:
            text: one segment per latent frame, from `text`.
            motion: `(B, T, channels, h, w)`.
            guidance: `(B, T, 2)` strengths, for a network that takes them.
            past: the same frames as a stream has committed them, which may begin earlier. Each chunk then
                sees itself and, of the chunks before it, only these (teacher forcing); without, what lies
                before it in `x` (diffusion forcing).
        """
        # a frozen teacher may be held in bfloat16 where nothing else is
        x = x.to(self.dit.patch_embedding.weight.dtype)
        if past is None:
            context = self._context(x)
            return velocity_of(self.dit, x, sigma * 1000, text, context, motion, guidance).float()
        seen = past.x.shape[1]
        assert text.segment is not None
        segments = [text.segment if past.segment is None else past.segment, text.segment]
        motions = [motion if past.motion is None else past.motion, motion]
        committed = (torch.arange(seen + x.shape[1], device=x.device) < seen).float()
        with written(committed if self.dit.config.writer else None):
            out = velocity_of(
                self.dit,
                torch.cat([past.x.to(x), x], 1),
                torch.cat([past.sigma, sigma], 1) * 1000,
                TextContext(text.keys, text.values, torch.cat(segments, 1)),
                self._context(x, seen, past.copies),
                torch.cat(motions, 1),
                None if guidance is None else pad(guidance, (0, 0, seen, 0)),
            )
        return out[:, seen:].float()

    def _context(self, latents: Tensor, seen: int = 0, copies: int = 1) -> AttentionContext:
        """That of `latents` alone, or behind the last of `seen` committed frames, `copies` times."""
        grid, count = self.dit.token_grid(latents), latents.shape[1]
        key = (count, *grid, seen, copies, str(latents.device))
        if key not in self._contexts:
            self._contexts[key] = self._new_context(count, grid, seen, copies, latents.device)
        return self._contexts[key]

    def _new_context(
        self, count: int, grid: tuple[int, int], seen: int, copies: int, device: torch.device
    ) -> AttentionContext:
        rope, plan = self.dit.rope, self.plan
        if plan.chunk_frames == 1 and (copies > 1 or seen > plan.attention_frames):
            # shorter ones have too little to gain
            return PackedContext(rope, seen, count // copies, plan, grid, device, copies)
        if seen:
            frames = [SequenceFrame(i, target=False) for i in range(seen)]
            again = range(seen - count // copies, seen)
            frames += [SequenceFrame(i, context=False, copy=copy) for copy in range(copies) for i in again]
            return MaskedContext(rope, frames, plan, grid, device)
        if count <= plan.first_chunk_frames:
            return BidirectionalContext(rope, count, grid, device)
        return MaskedContext(rope, [SequenceFrame(i) for i in range(count)], plan, grid, device)


class FlowMatching(FlowNetwork):
    """The network with the flow-matching loss in forward, which is what data parallelism wraps."""

    def forward(self, batch: FlowBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Weighted mean squared error of the velocity, and the same by noise level; and `told_loss`."""
        error = self.errors(batch)
        loss = (error * batch.weight).sum() / batch.weight.sum().clamp_min(1e-6)
        added, metrics = self.told_loss(batch.told)
        return loss + added, _by_level(error.detach(), batch) | metrics

    def errors(self, batch: FlowBatch) -> Tensor:
        """Mean squared error of the velocity of each target, its cells weighted by their focus, `(B, T)`."""
        words, segment = batch.words, batch.segment
        if batch.committed is None and segment.shape[1] == 1:
            # a single frame reads one of its captions: the others need no keys and values
            words, segment = words.take_along_dim(segment[..., None], 1), torch.zeros_like(segment)
        text = self.text(words, segment)
        motion = self.motion(batch.tracks, (batch.x0.shape[3], batch.x0.shape[4]))
        noisy = add_noise(batch.targets, batch.noise, batch.sigma)
        own, past = batch.motion_of_targets(motion), batch.past(motion)
        velocity = self.velocity(noisy, batch.sigma, text, own, past=past)
        squares = (velocity - velocity_target(batch.targets, batch.noise)).square().mean(2)
        return focused(squares, batch.focus)


def focused(squares: Tensor, focus: Tensor) -> Tensor:
    """Mean `(B, T)` of cell errors `squares (B, T, h, w)` with the weights `focus`."""
    return (squares * focus).sum((2, 3)) / focus.sum((2, 3))


def guided(
    network: FlowNetwork, x: Tensor, sigma: Tensor, condition: "Condition", past: Past | None = None
) -> Tensor:
    """Velocity of a network without a guidance input under joint guidance of each frame's own strengths.

    Args and result are those of `FlowNetwork.velocity`; all branches go in one forward. As in a stream they
    share a past that was committed with text and motion: they are copies behind it. Without a past they are
    samples of their own.
    """
    text, motion = condition.text, condition.motion
    assert text.segment is not None
    nothing = torch.full_like(text.segment, text.keys[0].shape[1] - 1)
    branches = [text.segment, nothing, text.segment], [motion, motion, torch.zeros_like(motion)]
    if past is None:
        three = TextContext(
            tuple(k.repeat(3, 1, 1, 1, 1) for k in text.keys),
            tuple(v.repeat(3, 1, 1, 1, 1) for v in text.values),
            torch.cat(branches[0]),
        )
        motions = torch.cat(branches[1])
        out = network.velocity(x.repeat(3, 1, 1, 1, 1), sigma.repeat(3, 1), three, motions)
        full, without_text, without_motion = out.chunk(3)
    else:
        three = TextContext(text.keys, text.values, torch.cat(branches[0], 1))
        behind = replace(
            past,
            segment=text.segment if past.segment is None else past.segment,
            motion=motion if past.motion is None else past.motion,
            copies=3 * past.copies,
        )
        motions = torch.cat(branches[1], 1)
        out = network.velocity(x.repeat(1, 3, 1, 1, 1), sigma.repeat(1, 3), three, motions, None, behind)
        full, without_text, without_motion = out.chunk(3, 1)
    w_t, w_m = (condition.strengths[..., i, None, None, None] for i in (0, 1))
    return joint_guidance(full, without_text, without_motion, w_t, w_m)


@dataclass(frozen=True)
class Condition:
    """What a batch of windows is conditioned on: `text` (its last segment no text), `motion (B, T, channels,
    h, w)`, and guidance `strengths (B, T, 2)` of text and motion, the latter 0 where there are no tracks.
    """

    text: TextContext
    motion: Tensor
    strengths: Tensor


def _by_level(error: Tensor, batch: FlowBatch) -> dict[str, Tensor | float]:
    """Mean error at low (< 1/3), middle and high (> 2/3) noise, the instrument for what the network learns
    first.
    """
    out: dict[str, Tensor | float] = {}
    for name, low, high in (("low", 0.0, 1 / 3), ("mid", 1 / 3, 2 / 3), ("high", 2 / 3, 1.01)):
        chosen = batch.weight * ((batch.sigma >= low) & (batch.sigma < high))
        # not a number where a batch has none
        out[f"error_{name}"] = (error * chosen).sum() / chosen.sum()
    return out


def sample_sigmas(shape: tuple[int, ...], shift: float, generator: torch.Generator) -> Tensor:
    """Uniform levels pushed towards noise by the timestep shift."""
    u = torch.rand(shape, generator=generator)
    return shift * u / (1 + (shift - 1) * u)
