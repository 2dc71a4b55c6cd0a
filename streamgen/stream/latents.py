"""A stream of latents: its cache, the record of what the cache was made from, and the next chunk. A value."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.kv_cache import CacheCursor, CacheRing

from ..engine.noise import NoiseSource
from ..engine.scheduler import add_noise
from .prompts import Text


@dataclass(frozen=True, eq=False)
class LatentChunk:
    """A finished chunk.

    Attributes:
        index, start: its number, and its first latent frame.
        latents: clean, `(B, T, C, h, w)`.
        motion: motion latents, None where no track said anything.
        text: what its keys are made under.
        sigma, drawn: the context noise level at which it is committed, and whether it gets noise of that
            level.
    """

    index: int
    start: int
    latents: Tensor
    motion: Tensor | None
    text: Text | None = None
    sigma: float = 0.0
    drawn: bool = True

    @property
    def frames(self) -> int:
        """Latent frames."""
        return self.latents.shape[1]

    def committed(self, noise: NoiseSource) -> Tensor:
        """The latents as they enter the cache: noised with the chunk's own commit draw where its level is
        above 0, so that every recache repeats it exactly.
        """
        latents = self.latents.detach()
        if self.sigma > 0 and self.drawn:
            latents = add_noise(latents, noise.commit(self.index, tuple(latents.shape)), self.sigma)
        return latents

    @property
    def levels(self) -> tuple[float, ...]:
        """Timestep of its context noise level, 0 to 1000, for each of its latent frames."""
        return (1000 * self.sigma,) * self.frames

    def detached(self) -> "LatentChunk":
        """Without gradient."""
        motion = None if self.motion is None else self.motion.detach()
        return replace(self, latents=self.latents.detach(), motion=motion)


@dataclass(frozen=True, eq=False)
class LatentState:
    """Everything a stream of latents is.

    Attributes:
        ring, cursor: the cache, and what of it counts.
        context: the chunks that sink and window hold, oldest first, the one that is `due` counted.
        recent: the last chunks, as many as attention spans: what a joint recache starts from, and what is
            due.
        chunk: index of the next chunk.
        scene: the chunk and latent frame at which the context was last cleared: chunk lengths count from
            there.
        due: whether the last chunk has still to be committed.
    """

    ring: CacheRing
    cursor: CacheCursor = field(default_factory=CacheCursor)
    context: tuple[LatentChunk, ...] = ()
    recent: tuple[LatentChunk, ...] = ()
    chunk: int = 0
    scene: tuple[int, int] = (0, 0)
    due: bool = False

    @property
    def start(self) -> int:
        """First latent frame of the next chunk."""
        return self.scene[1] + self.ring.plan.start(self.chunk - self.scene[0])

    @property
    def length(self) -> int:
        """Latent frames of the next chunk."""
        return self.ring.plan.length(self.chunk - self.scene[0])

    @property
    def coming(self) -> CacheCursor:
        """The cursor once what is due is committed."""
        return self.cursor.moved(self.recent[-1].frames) if self.due else self.cursor

    @property
    def intact(self) -> bool:
        """Whether the cache holds what the record says; a step that failed may have cost it."""
        return self.ring.intact(self.cursor)

    @property
    def whole(self) -> bool:
        """Whether attention still spans the scene from its first chunk on."""
        return not self.recent or self.recent[0].index == self.scene[0]

    def later(self, chunks: int) -> "LatentState":
        """Where the stream is so many chunks later, with the record that it has now."""
        return replace(self, chunk=self.chunk + chunks)

    def cleared(self) -> "LatentState":
        """Without a past: the next chunk begins a scene of its own."""
        return LatentState(self.ring, self.ring.emptied(), chunk=self.chunk, scene=(self.chunk, self.start))

    def followed_by(self, chunk: LatentChunk) -> "LatentState":
        """The state once a chunk is finished; its commit is due."""
        plan = self.ring.plan
        return replace(
            self,
            context=held_chunks((*self.context, chunk), plan.sink_frames, plan.window_frames),
            recent=last_chunks((*self.recent, chunk), plan.attention_frames),
            chunk=chunk.index + 1,
            due=True,
        )


def last_chunks(chunks: tuple[LatentChunk, ...], frames: int) -> tuple[LatentChunk, ...]:
    """As many of the last chunks as have at most `frames` latent frames together, in order."""
    out: list[LatentChunk] = []
    for chunk in reversed(chunks):
        frames -= chunk.frames
        if frames < 0:
            break
        out.append(chunk)
    return tuple(reversed(out))


def sink_chunks(context: tuple[LatentChunk, ...], sink_frames: int) -> tuple[LatentChunk, ...]:
    """The chunks of a context that lie in the sink."""
    frames = 0
    for i, chunk in enumerate(context):
        frames += chunk.frames
        if frames > sink_frames:
            return context[:i]
    return context


def held_chunks(
    chunks: tuple[LatentChunk, ...], sink_frames: int, window_frames: int
) -> tuple[LatentChunk, ...]:
    """Of chunks in order, the last one just finished, those that sink and window still hold once it is
    committed.
    """
    sink = sink_chunks(chunks, sink_frames)
    window, frames = [], 0
    for chunk in reversed(chunks[len(sink) :]):
        if frames >= window_frames:
            break
        frames += chunk.frames
        window.append(chunk)
    return (*sink, *reversed(window))


def joined_motion(chunks: tuple[LatentChunk, ...]) -> Tensor | None:
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
