"""A tiny autoencoder in the TAEHV format (https://github.com/madebyollin/taehv, MIT), streaming.

Two-dimensional convolutions only: time is handled by blocks that also see their own input of the frame
before, by pooling frames into channels (encoder) and growing channels into frames (decoder). Latents are
those that the diffusion network sees, already normalised. Four frames make one latent frame, without a case
of its own for frame 0; instead the decoder's first three frames are dropped, and the encoder repeats the last
frame up to a multiple of four. Parameter names are the published ones.
Legend: B batch, T frames, C channels, H W size; inside, tensors are `(B T) C H W`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .bottleneck import Posterior
from .video_codec import FeatureState, Memory

_TEMPORAL = 4
_DROPPED = _TEMPORAL - 1


@dataclass(frozen=True, kw_only=True)
class TinyDecoderConfig:
    """Sizes; the defaults are those of taew2_1 (1,470,928 + 9,844,611 parameters).

    Raises:
        ValueError: a size below 1, or another number of scales than four.
    """

    latent_channels: int = 16
    encoder_dim: int = 64
    decoder_dims: tuple[int, ...] = (256, 128, 64, 64)

    def __post_init__(self) -> None:
        if len(self.decoder_dims) != 4:
            raise ValueError(f"decoder_dims must have four entries, found {list(self.decoder_dims)}")
        if min(self.latent_channels, self.encoder_dim, *self.decoder_dims) < 1:
            raise ValueError("latent_channels, encoder_dim and decoder_dims must be at least 1")


class SoftClamp(nn.Module):
    """Latents kept within about three."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Residual convolutions over a frame and the frame before it; `slot` names its memory."""

    slot: str = ""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(2 * dim, dim), nn.ReLU(), _conv(dim, dim), nn.ReLU(), _conv(dim, dim))

    def step(self, x: Tensor, batch: int, memory: Memory) -> Tensor:
        """The next frames `(B T) C H W`."""
        frames = x.unflatten(0, (batch, -1)).transpose(1, 2)
        before = torch.cat([memory.past(self.slot, frames, 1), frames[:, :, :-1]], 2)
        memory.keep(self.slot, frames, 1)
        past = before.transpose(1, 2).flatten(0, 1)
        return torch.relu(self.conv(torch.cat([x, past], 1)) + x)


class TemporalPool(nn.Module):
    """`stride` frames to one."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(dim * stride, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, self.stride * x.shape[1], *x.shape[2:]))


class TemporalGrow(nn.Module):
    """One frame to `stride`."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class TinyDecoder(nn.Module):
    """See the module; a `VideoCodec` whose encoder is there too."""

    latent_mean: Tensor

    def __init__(self, config: TinyDecoderConfig) -> None:
        super().__init__()
        self.config = config
        e, z = config.encoder_dim, config.latent_channels
        encoder: list[nn.Module] = [_conv(3, e), nn.ReLU()]
        for stride in (2, 2, 1):
            encoder += [TemporalPool(e, stride), nn.Conv2d(e, e, 3, 2, 1, bias=False)]
            encoder += [MemoryBlock(e) for _ in range(3)]
        self.encoder = nn.Sequential(*encoder, _conv(e, z))
        widths = config.decoder_dims
        decoder: list[nn.Module] = [SoftClamp(), _conv(z, widths[0]), nn.ReLU()]
        for i, stride in enumerate((1, 2, 2)):
            decoder += [MemoryBlock(widths[i]) for _ in range(3)]
            decoder += [nn.Upsample(scale_factor=2), TemporalGrow(widths[i], stride)]
            decoder.append(_conv(widths[i], widths[i + 1], bias=False))
        self.decoder = nn.Sequential(*decoder, nn.ReLU(), _conv(widths[3], 3))
        # says device and dtype; the latents need no statistics
        self.register_buffer("latent_mean", torch.zeros(z), persistent=False)
        for name, module in self.named_modules():
            if isinstance(module, MemoryBlock):
                module.slot = name

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> FeatureState:
        """The state before a stream's first chunk, for either `encode_chunk` or `decode_chunk`."""
        return FeatureState.new(batch, device, dtype)

    def state_from_tensors(self, tensors: Mapping[str, Tensor]) -> FeatureState:
        """See `VideoCodec`."""
        return FeatureState.from_tensors(tensors)

    def encode(self, video: Tensor) -> Posterior:
        """Latents of a clip `(B, T, 3, H, W)` in [-1, 1] of any length; without variance."""
        missing = -video.shape[1] % _TEMPORAL
        if missing:
            video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], 1)
        state = self.initial_state(video.shape[0], video.device, video.dtype)
        parts = []
        for part in video.split(_TEMPORAL, 1):
            latents, state = self.encode_chunk(part, state)
            parts.append(latents)
        mean = torch.cat(parts, 1)
        return Posterior(mean, torch.full_like(mean, -30.0))

    def decode(self, latents: Tensor, num_frames: int | None = None) -> Tensor:
        """Video of latents `(B, N, C, h, w)`: `num_frames` of its 1 + 4 (N - 1) frames, or all."""
        available = 1 + (latents.shape[1] - 1) * _TEMPORAL
        if num_frames is not None and not 1 <= num_frames <= available:
            raise ValueError(f"num_frames: expected 1 to {available}, found {num_frames}")
        state, frames = self.initial_state(latents.shape[0], latents.device, latents.dtype), []
        for part in latents.split(1, 1):
            video, state = self.decode_chunk(part, state)
            frames.append(video)
        return torch.cat(frames, 1)[:, :num_frames]

    def encode_chunk(self, video: Tensor, state: FeatureState) -> tuple[Tensor, FeatureState]:
        """Latents of a stream's next 4k frames."""
        if video.ndim != 5 or video.shape[2] != 3 or video.shape[3] % 8 or video.shape[4] % 8:
            raise ValueError(
                f"video: expected (B, T, 3, H, W), H and W multiples of 8, found {tuple(video.shape)}"
            )
        if not video.shape[1] or video.shape[1] % _TEMPORAL:
            raise ValueError(f"video: expected k * {_TEMPORAL} frames, found {video.shape[1]}")
        memory = Memory(state.opened("encoder", video.shape[0]))
        latents = _run(self.encoder, (video + 1) / 2, memory)
        return latents, memory.state("encoder", state.frames + video.shape[1])

    def encode_next(self, video: Tensor, state: FeatureState) -> tuple[Tensor, FeatureState]:
        """See `VideoCodec`. Frame 0 is the last of the four of latent frame 0, where the decoder has it, so
        the first call sees it four times; no frame waits for later ones.
        """
        if not state.frames:
            video = torch.cat([video[:, :1].expand(-1, _DROPPED, -1, -1, -1), video], 1)
        return self.encode_chunk(video, state)

    def decode_chunk(self, latents: Tensor, state: FeatureState) -> tuple[Tensor, FeatureState]:
        """Frames of a stream's next latents `(B, n, C, h, w)`, in [-1, 1]: 4 each, 1 of latent frame 0."""
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[2] != channels or 0 in latents.shape:
            raise ValueError(f"latents: expected (B, N >= 1, {channels}, h, w), found {tuple(latents.shape)}")
        memory = Memory(state.opened("decoder", latents.shape[0]))
        video = _run(self.decoder, latents, memory).clamp(0.0, 1.0) * 2 - 1
        dropped = _DROPPED if memory.starts else 0
        return video[:, dropped:], memory.state("decoder", state.frames + latents.shape[1])

    def normalize(self, latents: Tensor, start: int) -> Tensor:
        """The latents themselves."""
        return latents

    def denormalize(self, latents: Tensor, start: int) -> Tensor:
        """The latents themselves."""
        return latents


def _conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def _run(layers: nn.Sequential, x: Tensor, memory: Memory) -> Tensor:
    """All layers over `(B, T, C, H, W)`."""
    batch = x.shape[0]
    flat = x.flatten(0, 1)
    for layer in layers:
        flat = layer.step(flat, batch, memory) if isinstance(layer, MemoryBlock) else layer(flat)
    return flat.unflatten(0, (batch, -1))
