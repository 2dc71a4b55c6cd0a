"""Runners: how a chunk is denoised, committed, recached and decoded.

`PlainRunner` is the code of `models` as it reads. Every other runner is compared with it; most have nothing
of their own but how one pass of the network is computed, which is all that `PassRunner` asks of them.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby, repeat
from typing import Any, Protocol

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.joint_recache import JointRecache
from models.kv_cache import CacheCursor, CacheRing, CacheView
from models.video_codec import VideoCodec

from ..errors import InputError, NonFiniteError
from .attention import attention_kernels, attention_scope
from .decoder import DecoderState, StreamingDecoder
from .guidance import Conditioning, Pass, guided_passes, guided_velocity
from .noise import NoiseSource
from .quantize import quantization
from .sampler import Sampling, Velocity, denoise_chunk
from .source import Source

MOST_STREAMS = 64


@dataclass(frozen=True)
class BatchPlace:
    """Which of how many rows a stream has.

    Raises:
        InputError: a size that is none of 1 to 64, or a place outside of it.
    """

    size: int
    place: int

    def __post_init__(self) -> None:
        whole = type(self.size) is int and type(self.place) is int
        if not whole or not 1 <= self.size <= MOST_STREAMS or not 0 <= self.place < self.size:
            raise InputError(
                f"batch: expected a size of 1 to {MOST_STREAMS} and a place below it, found place "
                f"{self.place!r} of {self.size!r}"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BatchPlace":
        """Of what `to_json` gave; raises as the class does."""
        return cls(values.get("size", 0), values.get("place", 0))

    def to_json(self) -> dict[str, int]:
        """As records and snapshots have it."""
        return {"size": self.size, "place": self.place}


@dataclass(frozen=True, eq=False)
class DenoiseTask:
    """The next chunk of a stream, to be made from noise.

    Attributes:
        ring, cursor: the cache, and what of it counts.
        index, frames: number of the chunk, and its latent frames.
        conditioning: what steers it.
        noise: where its draws come from.
        sampling: how it is solved.
        source: pictures that it is made from, at the first level of `sampling`; None: from noise alone.
        due: the chunk before it, where that is still to be committed: the cursor lies behind it already.
            Only for runners that `commits_ahead`.
    """

    ring: CacheRing
    cursor: CacheCursor
    index: int
    frames: int
    conditioning: Conditioning
    noise: NoiseSource
    sampling: Sampling
    source: Source | None = None
    due: "CommitTask | None" = None

    @property
    def compares(self) -> bool:
        """Whether steps look at the source again: at a part that is to stay, or at its words."""
        return self.source is not None and (self.source.mask is not None or self.source.words is not None)

    def begun(self, noise: Tensor) -> Tensor:
        """What denoising begins at: noise, with the source in it."""
        return noise if self.source is None else self.source.noised(noise, self.sampling.sigmas[0])


@dataclass(frozen=True, eq=False)
class CommitTask:
    """Finished latent frames, to be put into a cache.

    Attributes:
        ring, cursor: the cache, and what of it counts.
        latents: `(B, T, C, h, w)` as the cache is to see them, noised where the context noise level says so.
        levels: timestep of that level, 0 to 1000, for each of the T latent frames.
        text, motion: what their keys are made under.
    """

    ring: CacheRing
    cursor: CacheCursor
    latents: Tensor
    levels: tuple[float, ...]
    text: TextContext
    motion: Tensor | None

    @property
    def frames(self) -> int:
        """Latent frames."""
        return self.latents.shape[1]

    @property
    def level(self) -> float | None:
        """The timestep of all frames; None where they differ."""
        return self.levels[0] if len(set(self.levels)) == 1 else None

    def timesteps(self) -> Tensor:
        """`(B, T)`, filled in where the latents lie."""
        batch, device = self.latents.shape[0], self.latents.device
        runs = [(level, len(list(frames))) for level, frames in groupby(self.levels)]
        parts = [torch.full((batch, count), level, device=device) for level, count in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Runner(Protocol):
    """Computes the parts of a chunk. What it is given it only reads, but for ring slots that no cursor points
    to.
    """

    @property
    def name(self) -> str:
        """As `runner=` names it; snapshots and records have it."""
        ...

    @property
    def quantize(self) -> str | None:
        """What of it is in eight bits, a name of `engine.quantize.QUANTIZATIONS`; None in full precision.
        Snapshots and records have it, too.
        """
        ...

    @property
    def batch(self) -> BatchPlace | None:
        """Its stream's place in a batch; None for a stream by itself. Snapshots and records have it, too."""
        ...

    @property
    def commits_ahead(self) -> bool:
        """Whether it commits a chunk together with the first step of the next one (`DenoiseTask.due`)."""
        ...

    def denoise(self, task: DenoiseTask) -> Tensor:
        """Clean latents `(B, T, C, h, w)` of the next chunk.

        Raises:
            NonFiniteError: a step has made something that is not finite.
        """
        ...

    def commit(self, task: CommitTask) -> CacheCursor:
        """Write a finished chunk's keys and values behind the cursor; returns the cursor with it."""
        ...

    def rejoin(self, task: CommitTask, keep_sink: bool) -> CacheCursor:
        """Rebuild the cache in one forward over the last latent frames, see `JointRecache`."""
        ...

    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The next pictures, uint8 `(T, H, W, 3)` on the host, and the decoder's state after them."""
        ...


class PlainRunner:
    """The networks as they read.

    Args:
        dit: the diffusion network, in full precision or in eight bits (`engine.quantize`).
        codec: what decodes pictures; None for streams of latents.
    """

    name = "plain"
    commits_ahead = False

    def __init__(self, dit: CausalDiT, codec: VideoCodec | None = None) -> None:
        self.dit = dit
        self.quantize: str | None = quantization(dit)
        self.batch: BatchPlace | None = None
        weight = dit.head.head.weight
        self.kernels = attention_kernels(weight.device, weight.dtype, dit.config.head_dim)
        self.decoder = None if codec is None else StreamingDecoder(codec)

    def denoise(self, task: DenoiseTask) -> Tensor:
        """See `Runner`."""
        watch, sampling, source = _FiniteWatch(), task.sampling, task.source
        first, fresh = self.draws(task)
        start, velocity = task.begun(first), self.velocity_of(task)
        if source is not None and source.words is not None:
            draws = [first, *fresh] if sampling.renoise else repeat(first)
            noise = dict(zip(sampling.sigmas[:-1], draws, strict=False))
            view = task.ring.view(task.cursor, task.frames)
            seen = self.velocity(view, replace(task.conditioning, text=source.words))
            velocity = source.likened(velocity, seen, noise)
        watch(0, "noise", start)
        with attention_scope(self.kernels):
            latents = denoise_chunk(
                velocity,
                start,
                sampling.sigmas,
                fresh.__getitem__ if sampling.renoise else None,
                sampling.exit_step,
                sampling.with_gradient,
                watch,
                source.kept if source is not None and source.mask is not None else None,
            )
        watch.check(task.index)
        return latents

    def draws(self, task: DenoiseTask) -> tuple[Tensor, list[Tensor]]:
        """All draws of a chunk, `(B, T, C, h, w)` each, before its first step, so that no step waits for a
        copy to the device: the first one, and those behind each step but the last.
        """
        size, config = task.ring.shape, self.dit.config
        shape = (size.batch, task.frames, config.latent_channels, *config.patches.cells(size.grid))
        sampling, noise = task.sampling, task.noise
        first = noise.initial(task.index, shape)
        steps = len(sampling.sigmas) - 1 if sampling.exit_step is None else sampling.exit_step + 1
        draws = range(steps - 1) if sampling.renoise else ()
        return first, [noise.renoise(task.index, step, shape) for step in draws]

    def velocity_of(self, task: DenoiseTask) -> Velocity:
        """What the steps of a chunk ask for, one after the other."""
        return self.velocity(task.ring.view(task.cursor, task.frames), task.conditioning)

    def velocity(self, view: CacheView, conditioning: Conditioning) -> Velocity:
        """The guided velocity of one chunk, at any noise level."""
        return lambda x, sigma: guided_velocity(self.dit, x, sigma, conditioning, view)

    @torch.no_grad()
    def commit(self, task: CommitTask) -> CacheCursor:
        """See `Runner`."""
        view = task.ring.view(task.cursor, task.frames)
        with attention_scope(self.kernels):
            self.dit(task.latents, task.timesteps(), task.text, view, task.motion)
        return task.cursor.moved(task.frames)

    @torch.no_grad()
    def rejoin(self, task: CommitTask, keep_sink: bool) -> CacheCursor:
        """See `Runner`."""
        context = JointRecache(task.ring, task.cursor, task.frames, keep_sink)
        with attention_scope(self.kernels):
            self.dit(task.latents, task.timesteps(), task.text, context, task.motion)
        return context.finish()

    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """See `Runner`."""
        assert self.decoder is not None, "a stream of latents decodes nothing"
        return self.decoder.decode(latents, state)


class PassRunner(PlainRunner):
    """A runner with passes of its own: of one chunk of one stream, under some words and motion. All else, and
    what it does not `serve`, the plain runner does. For streams, not for training.
    """

    def serves(self, view: CacheView) -> bool:
        """Whether it has a pass for this chunk; by default where the cache is of batch 1 and in full
        precision.
        """
        return view.ring.shape.batch == 1 and not view.ring.storage.eight_bits

    @abstractmethod
    def network_pass(self, view: CacheView, text: TextContext, motion: Tensor | None) -> Pass:
        """The pass of a chunk, made once for all of its steps."""
        ...

    @torch.no_grad()
    def denoise(self, task: DenoiseTask) -> Tensor:
        """See `Runner`."""
        assert not task.sampling.with_gradient, "training runs on the plain runner"
        return super().denoise(task)

    def velocity(self, view: CacheView, conditioning: Conditioning) -> Velocity:
        """See `PlainRunner`; branches of guidance one after the other."""
        # a pass of its own sees the words alone, and none to turn away from
        own = conditioning.strengths is None and conditioning.text.negative is None
        if not own or not self.serves(view):
            return super().velocity(view, conditioning)
        pass_of = lambda text, motion: self.network_pass(view, text, motion)  # noqa: E731
        return guided_passes(conditioning, pass_of, self.dit.config.guidance)

    @torch.no_grad()
    def commit(self, task: CommitTask) -> CacheCursor:
        """See `Runner`."""
        view, level = task.ring.view(task.cursor, task.frames), task.level
        if level is None or not self.serves(view):
            return super().commit(task)
        with attention_scope(self.kernels):
            self.network_pass(view, task.text, task.motion)(task.latents, level)
        return task.cursor.moved(task.frames)


class _FiniteWatch:
    """Looks whether all that the steps make is finite. What it finds stays on the device until the chunk's
    end, so that no step waits for the host.
    """

    def __init__(self) -> None:
        self.places: list[tuple[int, str]] = []
        self.finite: list[Tensor] = []

    def __call__(self, step: int, name: str, x: Tensor) -> None:
        self.places.append((step, name))
        self.finite.append(torch.isfinite(x.detach()).all())

    def check(self, chunk: int) -> None:
        """Raise NonFiniteError that names the first tensor that is not finite, if there is one."""
        check_finite(chunk, self.places, torch.stack(self.finite).tolist())


def step_places(steps: int) -> list[tuple[int, str]]:
    """What is looked at in a chunk of so many steps: the step, and the name of the tensor."""
    made = [(step, name) for step in range(steps) for name in ("velocity", "latents")]
    return [(0, "noise"), *made]


def check_finite(chunk: int, places: list[tuple[int, str]], finite: list[bool]) -> None:
    """Raise NonFiniteError that names the first place that is not finite, if there is one."""
    if all(finite):
        return
    step, name = places[finite.index(False)]
    raise NonFiniteError(
        f"chunk {chunk}: step {step + 1}: {name} is not finite; the stream stays where it was"
    )
