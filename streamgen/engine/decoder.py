"""Latents to pictures and back, streaming: thin wrappers around the tokenizer that count frames and own no
hidden state.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from models.video_codec import StreamState, VideoCodec


@dataclass(frozen=True)
class DecoderState:
    """Where a stream's decoder is: the tokenizer's own state and the number of latent frames decoded. A
    value.
    """

    tokenizer: StreamState
    latent_frames: int = 0

    @classmethod
    def initial(cls, codec: VideoCodec) -> "DecoderState":
        """The state before the first latent frame, batch 1."""
        weight = codec.latent_mean
        return cls(codec.initial_state(1, weight.device, weight.dtype))


Decode = Callable[[Tensor, DecoderState], tuple[Tensor, DecoderState]]


class Decoding:
    """Pictures on their way, and the state behind them: whoever asks first decodes, the others wait. One that
    failed or was cut short is decoded by the next who asks, so nothing is lost by that.

    Args:
        decode: makes pictures of latents in a state.
        latents: see `StreamingDecoder.decode`.
        before: the state that they follow.
    """

    def __init__(self, decode: Decode, latents: Tensor, before: DecoderState) -> None:
        self._todo: tuple[Decode, Tensor, DecoderState] | None = (decode, latents, before)
        self._made: tuple[Tensor, DecoderState] | None = None
        self._asking = threading.Lock()
        device = latents.device
        self._ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def result(self) -> tuple[Tensor, DecoderState]:
        """Pictures, uint8 `(T, H, W, 3)` on the host, and the state; raises what decoding raises."""
        with self._asking:
            if self._made is None:
                assert self._todo is not None
                decode, latents, before = self._todo
                with _beside(latents.device, self._ready):
                    self._made = decode(latents, before)
            self._todo = None
            return self._made


class DecoderThread:
    """Decodes chunks in a thread, one after the other, while their stream goes on."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "streamgen-decode")

    def begin(self, decode: Decode, latents: Tensor, before: DecoderState | Decoding) -> Decoding:
        """The next pictures of a stream; waits until those before them are there, so that no more than one
        chunk's are on their way.
        """
        coming = Decoding(decode, latents, at_rest(before))
        self._worker.submit(coming.result)
        return coming


def at_rest(state: DecoderState | Decoding) -> DecoderState:
    """A decoder's state, once it is there."""
    return state.result()[1] if isinstance(state, Decoding) else state


class StreamingDecoder:
    """Decodes a stream chunk by chunk with the numbers of one whole decode; work and state per push are
    constant.

    decoder = StreamingDecoder(tokenizer)
    for latents in chunks:
        frames = decoder.push(latents)
    """

    def __init__(self, tokenizer: VideoCodec) -> None:
        self.tokenizer = tokenizer
        self.state = self.initial_state()

    def initial_state(self) -> DecoderState:
        """The state before the first latent frame, batch 1."""
        return DecoderState.initial(self.tokenizer)

    @torch.no_grad()
    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The next frames, functionally: neither the given state nor the decoder changes.

        Args:
            latents: `(1, T, C, H, W)` normalised latents that follow what `state` has seen.

        Returns:
            uint8 frames `(T', H, W, 3)` and the state after them.
        """
        # where the decoder is, which may be another device
        raw = self.tokenizer.denormalize(latents.to(self.tokenizer.latent_mean), state.latent_frames)
        video, after = self.tokenizer.decode_chunk(raw, state.tokenizer)
        return self.to_host(video[0]), DecoderState(after, state.latent_frames + latents.shape[1])

    def to_host(self, video: Tensor) -> Tensor:
        """Decoded pictures, float `(T, 3, H, W)` on the tokenizer's device, as uint8 `(T, H, W, 3)` on the
        CPU; its own step, so that it can be timed.
        """
        return to_uint8(video)

    def push(self, latents: Tensor) -> Tensor:
        """Decode the next latents and move on; returns uint8 frames `(T', H, W, 3)`."""
        frames, self.state = self.decode(latents, self.state)
        return frames

    def reset(self) -> None:
        """Begin a new stream."""
        self.state = self.initial_state()


@torch.no_grad()
def encode_frames(tokenizer: VideoCodec, frames: Tensor) -> Tensor:
    """Normalised latents `(1, T, C, h, w)` of uint8 frames `(T', H, W, 3)` from the start of a stream; the
    tail is padded to a latent frame.
    """
    mean = tokenizer.latent_mean
    video = frames.to(mean.device).movedim(-1, 1)[None].to(mean.dtype).div(127.5).sub(1.0)
    return tokenizer.normalize(tokenizer.encode(video).mean, 0)


def to_uint8(video: Tensor) -> Tensor:
    """Float `(T, 3, H, W)` in about [-1, 1] to uint8 `(T, H, W, 3)` on the CPU; a quarter of the bytes are
    copied, and from a GPU through pinned memory.
    """
    pixels = video.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels.movedim(1, -1).contiguous()
    return _pinned(pixels) if pixels.device.type == "cuda" else pixels.cpu()


def _pinned(pixels: Tensor) -> Tensor:
    """A copy in pinned memory, on a stream of its own: it waits for these pictures and not for what others
    have asked the device for since. Torch keeps pinned memory that is let go of, so a stream whose pictures
    are shown and forgotten has two blocks in turn.
    """
    device, host = pixels.device, torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    aside = _aside(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        host.copy_(pixels, non_blocking=True)
        pixels.record_stream(aside)
        done = aside.record_event()
    done.synchronize()
    return host


def _beside(device: torch.device, ready: torch.cuda.Event | None) -> AbstractContextManager[object]:
    """A stream of the device for decoding, which waits until the latents are there; nothing on CPUs."""
    if ready is None:
        return nullcontext()
    stream = _decoding(device)
    stream.wait_event(ready)
    return torch.cuda.stream(stream)


@functools.cache
def _decoding(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which chunks are decoded beside the next one."""
    return torch.cuda.Stream(device)


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which pictures are copied."""
    return torch.cuda.Stream(device)
