"""The networks that score a student's streams, and what they are told of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoder, Tracks
from models.text_encoder import PAD
from streamgen.engine.scheduler import add_noise, x0_from_velocity

from .batches import moved
from .config import require
from .flow import Condition, FlowMatching, FlowNetwork, Past, guided
from .guidance import strengths_over
from .latent_cache import LatentClips
from .objectives import Denoiser
from .running import Script
from .window_tracks import window_tracks


class Critic(FlowNetwork):
    """The fake score: velocity of noisy windows of the student's streams, which it is trained on. With
    `judge` its features tell, too, how much each latent frame looks like one of a clip.
    """

    def __init__(
        self, dit: CausalDiT, text_encoder: nn.Module, motion_encoder: MotionEncoder, plan: ChunkPlan
    ) -> None:
        super().__init__(dit, text_encoder, motion_encoder, plan)
        self.judge: nn.Linear | None = None

    def add_judge(self) -> None:
        """Give it a judgement: a linear map from the mean of the last block's tokens, zero at first."""
        judge = nn.Linear(self.dit.config.dim, 1)
        nn.init.zeros_(judge.weight)
        nn.init.zeros_(judge.bias)
        self.judge = judge.to(next(self.dit.parameters()))

    def forward(self, x: Tensor, sigma: Tensor, told: "Told", judged: bool = False) -> Tensor:
        """Velocity of `x (B, T, C, h, w)` at levels `sigma (B, T)` under what is `told` of them; or what they
        are `judged` to be, `(B, T)`.
        """
        condition, past = condition_of(self, told, x.shape)
        conditioned = (condition.text, condition.motion, condition.strengths, past)
        if not judged:
            return self.velocity(x, sigma, *conditioned)
        assert self.judge is not None
        hidden: list[Tensor] = []
        taken = self.dit.blocks[-1].register_forward_hook(lambda block, given, out: hidden.append(out))
        try:
            velocity = self.velocity(x, sigma, *conditioned)
        finally:
            taken.remove()
        logits: Tensor = self.judge(hidden[0][:, -x.shape[1] :].mean(2))
        # data parallelism expects a gradient of every parameter
        return logits[..., 0].float() + 0 * velocity.mean((2, 3, 4))


@dataclass(frozen=True)
class Told:
    """What the scores are told of a window: words, which caption each frame reads, tracks, guidance, and the
    P frames `committed` (with their noise levels) whose last ones are scored; None without a past.
    """

    words: Tensor
    segment: Tensor
    tracks: Tracks
    strengths: Tensor
    committed: tuple[Tensor, Tensor] | None


def real_score(teacher: FlowMatching, told: Told, shape: torch.Size) -> Denoiser:
    """Clean estimates of the teacher under joint guidance, for windows of a `shape (B, T, C, h, w)`."""
    condition, past = condition_of(teacher, told, shape)

    def real(x: Tensor, sigma: Tensor) -> Tensor:
        return x0_from_velocity(x, guided(teacher, x, sigma, condition, past), sigma)

    return real


def score_alone(teacher: FlowMatching, told: Told, shape: torch.Size, chunk: int) -> Denoiser:
    """`real_score` of chunks of `chunk` latent frames that know nothing of what came before them."""
    condition, _ = condition_of(teacher, told, shape)
    count, text = shape[1] // chunk, condition.text

    def apart(x: Tensor) -> Tensor:
        """`(B, T, ...)` to `(B * chunks, chunk, ...)`."""
        return x.unflatten(1, (count, chunk)).flatten(0, 1)

    assert text.segment is not None
    keys, values = ([x.repeat_interleave(count, 0) for x in part] for part in (text.keys, text.values))
    text = type(text)(tuple(keys), tuple(values), apart(text.segment))
    alone = Condition(text, apart(condition.motion), apart(condition.strengths))

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        parts, levels = apart(x), apart(sigma)
        clean = x0_from_velocity(parts, guided(teacher, parts, levels, alone), levels)
        return clean.unflatten(0, (-1, count)).flatten(1, 2)

    return score


def fake_score(critic: Critic, told: Told) -> Denoiser:
    """Clean estimates of the critic."""

    def fake(x: Tensor, sigma: Tensor) -> Tensor:
        return x0_from_velocity(x, critic(x, sigma, told), sigma)

    return fake


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """What is computed here has no gradient for the parameters of `module`, but for its inputs."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def clip_windows(
    clips: LatentClips,
    script: Script,
    places: Tensor,
    new: int,
    silence: tuple[float, float],
    plan: ChunkPlan,
    context_noise: float | None,
    generator: torch.Generator,
) -> tuple[Tensor, Told]:
    """As many windows of clips as there are streams, with the guidance of these, of the same latent frames;
    where clips are shorter than the streams, the sink and as late a stretch as they have. Latents `(B, T, C,
    h, w)`, and what is told of them.

    Args:
        places: latent frames `(P,)` that a window shows of a stream.
        new: how many of them are scored, the last ones.
        silence: as in `window_tracks`.
        context_noise: level at which frames were committed; None where chunks are not scored behind them.

    Raises:
        ConfigError: clips with fewer latent frames than a window shows.
    """
    total = clips.latents.shape[1]
    require(total >= len(places), "cache.frames", f"{1 + 4 * (len(places) - 1)} or more", 1 + 4 * (total - 1))
    beyond = max(0, int(places[-1]) + 1 - total)
    frames = torch.where(places < plan.sink_frames, places, places - beyond)
    steady = (clips.switch >= total).nonzero()[:, 0]
    rows = steady if len(steady) else torch.arange(len(clips.switch))
    rows = rows[torch.randint(len(rows), (len(script.words),), generator=generator)]
    at = frames.expand(len(rows), -1)
    x = clips.latents[rows[:, None], at].float()
    segment = (at >= clips.switch[rows, None].long()).long()
    words = clips.words[rows].long()
    tracks = window_tracks(clips, rows, at, silence, generator, whole=True)
    committed = None
    if context_noise is not None:
        level = torch.full(x.shape[:2], context_noise)
        committed = add_noise(x, torch.randn(x.shape, generator=generator), level), level
    strengths = strengths_over(script.strengths.cpu(), tracks.state, plan, places)
    words = torch.cat([words, torch.full_like(words[:, :1], PAD)], 1)
    told = Told(words, segment, tracks, strengths, committed)
    return moved((x[:, -new:], told), script.words.device)


def condition_of(network: FlowNetwork, told: Told, shape: torch.Size) -> tuple[Condition, Past | None]:
    """What is told of windows of a `shape (B, T, C, h, w)`, by a network's own encoders, and their past."""
    motion, new = network.motion(told.tracks, (shape[3], shape[4])), -shape[1]
    past = None if told.committed is None else Past(*told.committed, told.segment, motion)
    text = network.text(told.words, told.segment[:, new:])
    return Condition(text, motion[:, new:], told.strengths[:, new:]), past
