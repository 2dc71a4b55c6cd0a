"""The autoregressive loop. Rendering, the live demo, evaluation and Self Forcing all go through `rollout`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.joint_recache import JointRecache
from models.kv_cache import KVCache

from ..engine.guidance import Conditioning, guided_velocity
from ..engine.noise import NoiseSource
from ..engine.sampler import denoise_chunk
from ..engine.scheduler import add_noise

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How a chunk is solved.

    `sigmas` falling from 1 to 0; `renoise` consistency-style steps instead of Euler; `context_sigma` noise
    level at which finished chunks are committed, `commit_noise` whether they get noise of that level or (as
    in the published inference code of Self Forcing) only its timestep; `exit_step` and `with_gradient` are
    for Self Forcing (see `denoise_chunk`).
    """

    sigmas: tuple[float, ...]
    renoise: bool = False
    context_sigma: float = 0.0
    commit_noise: bool = True
    exit_step: int | None = None
    with_gradient: bool = False


@dataclass(frozen=True)
class LatentChunk:
    """A finished chunk: its index, first latent frame, clean latents `(B, T, C, H, W)` and motion latents (or
    None).
    """

    index: int
    start: int
    latents: Tensor
    motion: Tensor | None


@dataclass
class RolloutState:
    """Everything a stream of latents is: the cache, the context it was made from, and the next chunk's index.

    `context` holds the clean latents of exactly the chunks whose keys are in the cache, oldest first;
    bounded. `stale` says that the cache does not stand for the context any more (a recache was cut short, or
    the chunk it was made for failed) and has to be rebuilt before use. `scene` is the chunk and latent frame
    at which the context was last cleared: chunk lengths are counted from there. `recent` are the last chunks,
    as many as attention spans: what a joint recache starts from.
    """

    cache: KVCache
    context: list[LatentChunk] = field(default_factory=list)
    chunk: int = 0
    stale: bool = False
    scene: tuple[int, int] = (0, 0)
    recent: list[LatentChunk] = field(default_factory=list)

    @property
    def start(self) -> int:
        """First latent frame of the next chunk."""
        return self.scene[1] + self.cache.plan.start(self.chunk - self.scene[0])

    @property
    def length(self) -> int:
        """Latent frames of the next chunk."""
        return self.cache.plan.length(self.chunk - self.scene[0])

    @property
    def sink_held(self) -> bool:
        """Whether the cache holds the sink's keys; a rebuild that was cut short may have cost them."""
        sink = sink_chunks(self.context, self.cache)
        return self.cache.frames >= sum(chunk.latents.shape[1] for chunk in sink)

    def joint_keeps(self, sink: str) -> bool:
        """Whether a joint recache leaves the sink's keys: asked to, with the keys still there, and with a
        stream longer than its span (a shorter one is made anew as a whole, as published).
        """
        whole = not self.recent or self.recent[0].index == self.scene[0]
        return sink == "keep" and self.sink_held and not whole

    def clear(self) -> None:
        """Forget the past: the next chunk begins a scene of its own."""
        self.scene = (self.chunk, self.start)
        self.cache.reset()
        self.context, self.recent = [], []
        self.stale = False

    def take_back(
        self,
        context: list[LatentChunk],
        scene: tuple[int, int],
        recent: list[LatentChunk],
        keep_sink: bool,
    ) -> None:
        """Undo a clear or a recache whose chunk failed: the past is as it was, the cache owes a rebuild.

        Args:
            context, scene, recent: as they were before.
            keep_sink: the sink's keys are still those from before.
        """
        self.context, self.scene, self.recent, self.stale = context, scene, recent, True
        self.cache.reset(keep_sink=keep_sink)

    def accept(self, chunk: LatentChunk) -> None:
        """Commit a chunk whose keys are in the cache's provisional slots, and move on. Does not fail."""
        self.cache.commit()
        self.context = held_chunks([*self.context, chunk], self.cache)
        self.recent = last_chunks([*self.recent, chunk], self.cache.plan.attention_frames)
        self.chunk = chunk.index + 1


def rollout(
    dit: CausalDiT,
    state: RolloutState,
    conditioning_at: Callable[[int], Conditioning],
    noise: NoiseSource,
    sampling: Sampling | Callable[[int], Sampling],
    given: Callable[[int], Tensor | None] = lambda chunk: None,
    accept: Callable[[LatentChunk], T] = lambda chunk: chunk,  # type: ignore[assignment, return-value]
    measure: Callable[[str, float], None] = lambda part, seconds: None,
) -> Iterator[T]:
    """Generate chunk after chunk, for ever.

    Args:
        dit: the network.
        state: the stream; continues at `state.chunk`. Changed only when a chunk is complete.
        conditioning_at: conditioning of chunk i; called once when the chunk begins (a session applies events
            here).
        noise: source of all draws.
        sampling: how chunks are solved; if callable, asked for chunk i after its conditioning.
        given: clean latents of chunk i where they are known (an image or a clip as the start), else None.
        accept: what to make of a finished chunk (decode it, say), called before anything is committed; if it
            raises, the chunk has not happened.
        measure: told the seconds spent on `denoise`, `commit` and `decode` of each chunk.

    Yields:
        what `accept` returned, once the chunk is committed.
    """
    while True:
        index = state.chunk
        # conditioning first: it applies events, and those may change how this very chunk is solved
        conditioning = conditioning_at(index)
        settings = sampling(index) if callable(sampling) else sampling
        began = time.perf_counter()
        latents = given(index)
        if latents is None:
            latents = generate(dit, state, conditioning, noise, settings)
        denoised = time.perf_counter()
        chunk = LatentChunk(index, state.start, latents, conditioning.motion)
        level = settings.context_sigma
        write(dit, state.cache, chunk, conditioning.text, noise, level, settings.commit_noise)
        written = time.perf_counter()
        result = accept(chunk)
        for part, seconds in (
            ("denoise", denoised - began),
            ("commit", written - denoised),
            ("decode", time.perf_counter() - written),
        ):
            measure(part, seconds)
        state.accept(_detached(chunk))
        yield result


def generate(
    dit: CausalDiT, state: RolloutState, conditioning: Conditioning, noise: NoiseSource, sampling: Sampling
) -> Tensor:
    """Denoise the next chunk; the stream is only read."""
    cache, index = state.cache, state.chunk
    rows, columns = cache.shape.grid
    size = (rows * dit.config.patch, columns * dit.config.patch)
    shape = (cache.shape.batch, state.length, dit.config.latent_channels, *size)
    cache.begin(state.length)
    return denoise_chunk(
        lambda x, sigma: guided_velocity(dit, x, sigma, conditioning, cache),
        noise.initial(index, shape),
        sampling.sigmas,
        (lambda step: noise.renoise(index, step, shape)) if sampling.renoise else None,
        sampling.exit_step,
        sampling.with_gradient,
    )


@torch.no_grad()
def write(
    dit: CausalDiT,
    cache: KVCache,
    chunk: LatentChunk,
    text: TextContext,
    noise: NoiseSource,
    context_sigma: float,
    commit_noise: bool = True,
) -> None:
    """The commit forward: put a finished chunk's keys and values into the provisional slots.

    At a context noise level above 0 the chunk is noised with its own commit draw, so a recache repeats it
    exactly.
    """
    latents = committed(chunk, noise, context_sigma if commit_noise else 0.0)
    cache.begin(latents.shape[1])
    timesteps = torch.full(latents.shape[:2], 1000 * context_sigma, device=latents.device)
    dit(latents, timesteps, text, cache, chunk.motion)


def committed(chunk: LatentChunk, noise: NoiseSource, sigma: float) -> Tensor:
    """A finished chunk as it enters the cache: noised with its own commit draw where the level is above 0."""
    latents = chunk.latents.detach()
    if sigma > 0:
        latents = add_noise(latents, noise.commit(chunk.index, tuple(latents.shape)), sigma)
    return latents


def recache(
    dit: CausalDiT,
    state: RolloutState,
    text: TextContext,
    noise: NoiseSource,
    context_sigma: float = 0.0,
    sink: Literal["refresh", "keep"] = "refresh",
    commit_noise: bool = True,
) -> None:
    """Rebuild the cache under new text: commit the context's clean latents again, in order (after LongLive,
    arXiv 2509.22622).

    Each chunk goes in with its own recorded motion and commit draw. Until this returns, `state.stale` is set.

    Args:
        sink: `refresh` commits the sink chunks again too; `keep` leaves their keys under the text they were
            made with, unless a refresh that was cut short has cost them.
    """
    cache = state.cache
    kept = sink_chunks(state.context, cache) if sink == "keep" and state.sink_held else []
    state.stale = True
    cache.reset(keep_sink=bool(kept))
    try:
        for chunk in state.context[len(kept) :]:
            write(dit, cache, chunk, text, noise, context_sigma, commit_noise)
            cache.commit()
    except BaseException:
        # a sink that is half under the new text must not be taken for the old one
        cache.reset(keep_sink=bool(kept))
        raise
    state.stale = False


@torch.no_grad()
def joint_recache(
    dit: CausalDiT,
    state: RolloutState,
    text: TextContext,
    noise: NoiseSource,
    context_sigma: float = 0.0,
    sink: Literal["refresh", "keep"] = "keep",
    commit_noise: bool = True,
) -> None:
    """Rebuild the cache under new text in one forward over the last attention span (see `JointRecache`); the
    cache's clock stays. Until this returns, `state.stale` is set.

    Args:
        sink: `keep` leaves the sink's keys, `refresh` puts the span's first frames in its place.
    """
    if not state.recent:
        return
    state.stale = True
    level = context_sigma if commit_noise else 0.0
    # the clock is behind the stream's where the cache was rebuilt after a failure
    span = last_chunks(state.recent, min(state.cache.frames, state.cache.plan.attention_frames))
    latents = torch.cat([committed(chunk, noise, level) for chunk in span], 1)
    context = JointRecache(state.cache, latents.shape[1], state.joint_keeps(sink))
    timesteps = torch.full(latents.shape[:2], 1000 * context_sigma, device=latents.device)
    dit(latents, timesteps, text, context, joined_motion(span))
    context.finish()
    if not context.sink:
        # the sink has become the span's first frames
        state.context = held_chunks(span, state.cache)
    state.stale = False


def joined_motion(chunks: list[LatentChunk]) -> Tensor | None:
    """The motion latents of consecutive chunks, zeros where one has none; None where all have none."""
    given = [chunk.motion for chunk in chunks if chunk.motion is not None]
    if not given:
        return None
    parts = []
    for chunk in chunks:
        b, t, _, h, w = chunk.latents.shape
        empty = given[0].new_zeros(b, t, given[0].shape[2], h, w)
        parts.append(empty if chunk.motion is None else chunk.motion)
    return torch.cat(parts, 1)


def last_chunks(chunks: list[LatentChunk], frames: int) -> list[LatentChunk]:
    """As many of the last chunks as have at most `frames` latent frames together, in order."""
    out: list[LatentChunk] = []
    for chunk in reversed(chunks):
        frames -= chunk.latents.shape[1]
        if frames < 0:
            break
        out.append(chunk)
    return out[::-1]


def sink_chunks(context: list[LatentChunk], cache: KVCache) -> list[LatentChunk]:
    """The chunks of a context that lie in the sink."""
    out, frames = [], 0
    for chunk in context:
        frames += chunk.latents.shape[1]
        if frames > cache.plan.sink_frames:
            break
        out.append(chunk)
    return out


def held_chunks(chunks: list[LatentChunk], cache: KVCache) -> list[LatentChunk]:
    """Of chunks in order, the last one just committed, those that sink and window still hold."""
    sink = sink_chunks(chunks, cache)
    window, frames = [], 0
    for chunk in reversed(chunks[len(sink) :]):
        if frames >= cache.plan.window_frames:
            break
        frames += chunk.latents.shape[1]
        window.append(chunk)
    return [*sink, *reversed(window)]


def _detached(chunk: LatentChunk) -> LatentChunk:
    motion = None if chunk.motion is None else chunk.motion.detach()
    return LatentChunk(chunk.index, chunk.start, chunk.latents.detach(), motion)
