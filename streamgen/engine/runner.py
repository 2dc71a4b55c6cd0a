"""Runners: how a chunk is denoised, committed, recached and decoded.

`PlainRunner` is the code of `models` as it reads. Every other runner is compared with it.
"""

from typing import Protocol

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.joint_recache import JointRecache
from models.kv_cache import CacheCursor, CacheRing, CacheView
from models.video_codec import VideoCodec

from ..errors import InputError, NonFiniteError
from .attention import attention_kernels, attention_scope
from .decoder import DecoderState, StreamingDecoder
from .guidance import Conditioning, guided_velocity
from .noise import NoiseSource
from .quantize import quantization
from .sampler import Sampling, Velocity, denoise_chunk


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
        """In which eight bits its linear layers compute; None in full precision. Snapshots and records have
        it, too.
        """
        ...

    def denoise(
        self,
        ring: CacheRing,
        cursor: CacheCursor,
        chunk: tuple[int, int],
        conditioning: Conditioning,
        noise: NoiseSource,
        sampling: Sampling,
    ) -> Tensor:
        """Clean latents `(B, T, C, h, w)` of the next chunk; `chunk` is its index and its latent frames.

        Raises:
            NonFiniteError: a step has made something that is not finite.
        """
        ...

    def commit(
        self,
        ring: CacheRing,
        cursor: CacheCursor,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext,
        motion: Tensor | None,
    ) -> CacheCursor:
        """Write a finished chunk's keys and values behind the cursor; returns the cursor with it.

        Args:
            latents: `(B, T, C, h, w)` as the cache is to see them, noised where the context noise level says
                so.
            timesteps: `(B, T)` of that level, 0 to 1000.
        """
        ...

    def rejoin(
        self,
        ring: CacheRing,
        cursor: CacheCursor,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext,
        motion: Tensor | None,
        keep_sink: bool,
    ) -> CacheCursor:
        """Rebuild the cache in one forward over the last latent frames, see `JointRecache`."""
        ...

    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The next pictures, uint8 `(T, H, W, 3)` on the host, and the decoder's state after them."""
        ...


# Runners whose passes see keys and values of the words alone.
_ONE_TEXT = ("onnx", "compile")


def check_negative(runner: Runner, negative: str, guided: bool) -> None:
    """Raise InputError for words to turn away from that a runner cannot.

    Args:
        negative: the words; "" none.
        guided: whether two predictions are compared, of which the second is under them: every runner can.
    """
    if negative.strip() and not guided and runner.name in _ONE_TEXT:
        raise InputError(
            f"setting negative_prompt: runner {runner.name} cannot turn away from words, take plain "
            "(--runner plain), or text_guidance above 1"
        )


class PlainRunner:
    """The networks as they read.

    Args:
        dit: the diffusion network, in full precision or in eight bits (`engine.quantize`).
        codec: what decodes pictures; None for streams of latents.
    """

    name = "plain"

    def __init__(self, dit: CausalDiT, codec: VideoCodec | None = None) -> None:
        self.dit = dit
        self.quantize: str | None = quantization(dit)
        weight = dit.head.head.weight
        self.kernels = attention_kernels(weight.device, weight.dtype, dit.config.head_dim)
        self.decoder = None if codec is None else StreamingDecoder(codec)

    def denoise(
        self,
        ring: CacheRing,
        cursor: CacheCursor,
        chunk: tuple[int, int],
        conditioning: Conditioning,
        noise: NoiseSource,
        sampling: Sampling,
    ) -> Tensor:
        """See `Runner`."""
        index, length = chunk
        rows, columns = ring.shape.grid
        patch, channels = self.dit.config.patch, self.dit.config.latent_channels
        shape = (ring.shape.batch, length, channels, rows * patch, columns * patch)
        view, watch = ring.view(cursor, length), _FiniteWatch()
        start = noise.initial(index, shape)
        velocity = self.velocity(view, conditioning)
        # all of the chunk's draws before its first step, so that no step waits for a copy to the device
        steps = len(sampling.sigmas) - 1 if sampling.exit_step is None else sampling.exit_step + 1
        fresh = [noise.renoise(index, step, shape) for step in range(steps - 1)] if sampling.renoise else []
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
            )
        watch.check(index)
        return latents

    def velocity(self, view: CacheView, conditioning: Conditioning) -> Velocity:
        """The guided velocity of one chunk, at any noise level."""
        return lambda x, sigma: guided_velocity(self.dit, x, sigma, conditioning, view)

    @torch.no_grad()
    def commit(
        self,
        ring: CacheRing,
        cursor: CacheCursor,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext,
        motion: Tensor | None,
    ) -> CacheCursor:
        """See `Runner`."""
        with attention_scope(self.kernels):
            self.dit(latents, timesteps, text, ring.view(cursor, latents.shape[1]), motion)
        return cursor.moved(latents.shape[1])

    @torch.no_grad()
    def rejoin(
        self,
        ring: CacheRing,
        cursor: CacheCursor,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext,
        motion: Tensor | None,
        keep_sink: bool,
    ) -> CacheCursor:
        """See `Runner`."""
        context = JointRecache(ring, cursor, latents.shape[1], keep_sink)
        with attention_scope(self.kernels):
            self.dit(latents, timesteps, text, context, motion)
        return context.finish()

    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """See `Runner`."""
        assert self.decoder is not None, "a stream of latents decodes nothing"
        return self.decoder.decode(latents, state)


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
        flags = torch.stack(self.finite).tolist()
        if all(flags):
            return
        step, name = self.places[flags.index(False)]
        raise NonFiniteError(
            f"chunk {chunk}: step {step + 1}: {name} is not finite; the stream stays where it was"
        )
