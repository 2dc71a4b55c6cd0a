"""The causal video autoencoder of Wan2.1 (https://github.com/Wan-Video/Wan2.1, Apache-2.0), streaming.

Every layer looks back in time at most two frames, so that a stream needs a constant state, which is explicit
here and owned by the caller. Both temporal resamplers leave latent frame 0 alone: the encoder's passes frame
0 on and strides over the rest, the decoder's doubles the later frames, whose convolution does not see frame
0 (the sentinel 'Rep' of the published code comes to that). Parameter names are the published ones.
Legend: B batch, C channels, T frames, H W picture size; inside, tensors are `B C T H W`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import attend
from .bottleneck import Posterior
from .video_codec import FeatureState, Memory

WAN_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
_TEMPORAL = 4


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Sizes of the autoencoder; the defaults are Wan2.1's (126,892,531 parameters).

    `latent_mean` and `latent_std` normalise what the diffusion network sees, one number per channel.

    Raises:
        ValueError: a size below 1, or statistics of another number of channels.
    """

    dim: int = 96
    latent_channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    temporal_down: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = WAN_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN_LATENT_STD

    def __post_init__(self) -> None:
        if min(self.dim, self.latent_channels, self.res_blocks, *self.multipliers) < 1:
            raise ValueError("dim, latent_channels, multipliers and res_blocks must be at least 1")
        if len(self.temporal_down) != len(self.multipliers) - 1 or sum(self.temporal_down) != 2:
            raise ValueError(
                f"temporal_down must have {len(self.multipliers) - 1} entries of which two are true, found "
                f"{list(self.temporal_down)}"
            )
        for name, values in (("latent_mean", self.latent_mean), ("latent_std", self.latent_std)):
            if len(values) != self.latent_channels:
                raise ValueError(f"{name} must have {self.latent_channels} numbers, found {len(values)}")
        if min(self.latent_std) <= 0:
            raise ValueError(f"latent_std must be positive, found {min(self.latent_std)}")

    @property
    def spatial(self) -> int:
        """Pixels per latent cell."""
        return 2 ** len(self.temporal_down)


class CausalConv3d(nn.Conv3d):
    """Convolution over time and space that sees the past only; `slot` names its memory."""

    slot: str = ""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(inputs, outputs, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """The next frames `(B, C, T, H, W)`."""
        history = self.kernel_size[0] - 1
        if history:
            x = torch.cat([memory.past(self.slot, x, history), x], 2)
            memory.keep(self.slot, x, history)
        return self(x)


class ChannelNorm(nn.Module):
    """Root-mean-square norm over channels, of every pixel by itself."""

    def __init__(self, dim: int, frames: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, 1) if frames else torch.ones(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.gamma.shape[0] ** 0.5 * self.gamma


class ResidualBlock(nn.Module):
    """Two norm, activation, convolution groups around a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(inputs),
            nn.SiLU(),
            CausalConv3d(inputs, outputs, (3, 3, 3)),
            ChannelNorm(outputs),
            nn.SiLU(),
            nn.Identity(),
            CausalConv3d(outputs, outputs, (3, 3, 3)),
        )
        self.shortcut = CausalConv3d(inputs, outputs, (1, 1, 1)) if inputs != outputs else nn.Identity()

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        return _run(self.residual, x, memory) + self.shortcut(x)


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of one frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, frames=False)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        b, _, t, h, w = x.shape
        flat = rearrange(x, "b c t h w -> (b t) c h w")
        qkv = rearrange(self.to_qkv(self.norm(flat)), "n (three c) h w -> three n (h w) 1 c", three=3)
        out = rearrange(attend(qkv[0], qkv[1], qkv[2]), "n (h w) 1 c -> n c h w", h=h, w=w)
        return x + rearrange(self.proj(out), "(b t) c h w -> b c t h w", b=b, t=t)


class Downsample(nn.Module):
    """Half the picture size, and with `temporal` half the frames after frame 0."""

    slot: str = ""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, 2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), (2, 1, 1)) if temporal else None

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        x = _per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        first = x[:, :, :1] if memory.starts else None
        # frame 0 is passed on as it is, and is also the past of the first stride
        x = x if memory.starts else torch.cat([memory.past(self.slot, x, 1), x], 2)
        memory.keep(self.slot, x, 1)
        if x.shape[2] < 3:
            return x[:, :, :0] if first is None else first
        later = self.time_conv(x)
        return later if first is None else torch.cat([first, later], 2)


class Upsample(nn.Module):
    """Twice the picture size at half the channels, and with `temporal` twice the frames after frame 0."""

    slot: str = ""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"), nn.Conv2d(dim, dim // 2, 3, padding=1)
        )
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        if self.time_conv is not None:
            later = x[:, :, 1:] if memory.starts else x
            # run for its memory even where frame 0 comes alone: zeros, which is what the next chunk must see
            twice = (
                rearrange(self.time_conv.step(later, memory), "b (two c) t h w -> b c (t two) h w", two=2)
                if later.shape[2]
                else self._untouched(later, memory)
            )
            x = torch.cat([x[:, :, :1], twice], 2) if memory.starts else twice
        return _per_frame(self.resample, x)

    def _untouched(self, empty: Tensor, memory: Memory) -> Tensor:
        assert self.time_conv is not None
        memory.keep(self.time_conv.slot, memory.past(self.time_conv.slot, empty, 2), 2)
        return empty


class Encoder3d(nn.Module):
    """Video to features of mean and log variance."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in (1, *config.multipliers)]
        self.conv1 = CausalConv3d(3, widths[0], (3, 3, 3))
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += [
                ResidualBlock(inputs if j == 0 else outputs, outputs) for j in range(config.res_blocks)
            ]
            if i < len(config.temporal_down):
                layers.append(Downsample(outputs, config.temporal_down[i]))
        self.downsamples = nn.Sequential(*layers)
        top = widths[-1]
        self.middle = nn.Sequential(ResidualBlock(top, top), FrameAttention(top), ResidualBlock(top, top))
        self.head = nn.Sequential(
            ChannelNorm(top), nn.SiLU(), CausalConv3d(top, 2 * config.latent_channels, (3, 3, 3))
        )

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.conv1.step(x, memory)
        return _run(self.head, _run(self.middle, _run(self.downsamples, x, memory), memory), memory)


class Decoder3d(nn.Module):
    """Latents to video."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in (config.multipliers[-1], *reversed(config.multipliers))]
        up = tuple(reversed(config.temporal_down))
        top = widths[0]
        self.conv1 = CausalConv3d(config.latent_channels, top, (3, 3, 3))
        self.middle = nn.Sequential(ResidualBlock(top, top), FrameAttention(top), ResidualBlock(top, top))
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            # an upsampling layer has halved the channels
            inputs = inputs // 2 if i else inputs
            blocks = range(config.res_blocks + 1)
            layers += [ResidualBlock(inputs if j == 0 else outputs, outputs) for j in blocks]
            if i < len(up):
                layers.append(Upsample(outputs, up[i]))
        self.upsamples = nn.Sequential(*layers)
        self.head = nn.Sequential(ChannelNorm(widths[-1]), nn.SiLU(), CausalConv3d(widths[-1], 3, (3, 3, 3)))

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        x = _run(self.middle, self.conv1.step(x, memory), memory)
        return _run(self.head, _run(self.upsamples, x, memory), memory)


class WanVAE(nn.Module):
    """See the module; a `VideoCodec`. Whole clips go through the same steps as streams, one latent frame at a
    time, so that memory does not grow with their length.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder3d(config)
        self.conv1 = CausalConv3d(2 * z, 2 * z, (1, 1, 1))
        self.conv2 = CausalConv3d(z, z, (1, 1, 1))
        self.decoder = Decoder3d(config)
        # part of the config, not of the published weights
        self.register_buffer("latent_mean", torch.tensor(config.latent_mean), persistent=False)
        self.register_buffer("latent_std", torch.tensor(config.latent_std), persistent=False)
        for name, module in self.named_modules():
            if isinstance(module, (CausalConv3d, Downsample)):
                module.slot = name

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> FeatureState:
        """The state before a stream's first chunk, for either `encode_chunk` or `decode_chunk`."""
        return FeatureState.new(batch, device, dtype)

    def state_from_tensors(self, tensors: Mapping[str, Tensor]) -> FeatureState:
        """See `VideoCodec`."""
        return FeatureState.from_tensors(tensors)

    def encode(self, video: Tensor) -> Posterior:
        """Posterior of a clip `(B, T, 3, H, W)` of any length; its end is repeated up to the next 1 + 4k."""
        self._check_video(video)
        missing = -(video.shape[1] - 1) % _TEMPORAL
        if missing:
            video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], 1)
        state = self.initial_state(video.shape[0], video.device, video.dtype)
        parts = []
        for part in (video[:, :1], *video[:, 1:].split(_TEMPORAL, 1)):
            if part.shape[1]:
                posterior, state = self.encode_chunk(part, state)
                parts.append(posterior)
        return Posterior(torch.cat([p.mean for p in parts], 1), torch.cat([p.logvar for p in parts], 1))

    def decode(self, latents: Tensor, num_frames: int | None = None) -> Tensor:
        """Video of raw latents `(B, N, C, h, w)`: `num_frames` of its 1 + 4 (N - 1) frames, or all."""
        self._check_latents(latents)
        available = 1 + (latents.shape[1] - 1) * _TEMPORAL
        if num_frames is not None and not 1 <= num_frames <= available:
            raise ValueError(f"num_frames: expected 1 to {available}, found {num_frames}")
        state = self.initial_state(latents.shape[0], latents.device, latents.dtype)
        frames = []
        for part in latents.split(1, 1):
            video, state = self.decode_chunk(part, state)
            frames.append(video)
        return torch.cat(frames, 1)[:, :num_frames]

    def encode_chunk(self, video: Tensor, state: FeatureState) -> tuple[Posterior, FeatureState]:
        """Posterior of a stream's next frames: 1 + 4k in the first call, 4k later."""
        self._check_video(video)
        frames, starts = video.shape[1], state.frames == 0
        if (frames - starts) % _TEMPORAL:
            expected = "1 + k * 4" if starts else "k * 4"
            raise ValueError(f"video: expected {expected} frames after {state.frames}, found {frames}")
        memory = Memory(state.opened("encoder", video.shape[0]))
        moments = self.conv1(self.encoder.step(video.transpose(1, 2), memory)).transpose(1, 2)
        mean, logvar = moments.chunk(2, 2)
        return Posterior(mean, logvar), memory.state("encoder", state.frames + frames)

    def encode_next(self, video: Tensor, state: FeatureState) -> tuple[Tensor, FeatureState]:
        """See `VideoCodec`; a latent frame at a time, as `encode` does, so that memory stays that of one."""
        first, parts = int(state.frames == 0), []
        for part in (video[:, :first], *video[:, first:].split(_TEMPORAL, 1)):
            if part.shape[1]:
                posterior, state = self.encode_chunk(part, state)
                parts.append(posterior.mean)
        return torch.cat(parts, 1), state

    def decode_chunk(self, latents: Tensor, state: FeatureState) -> tuple[Tensor, FeatureState]:
        """Frames of a stream's next raw latents `(B, n, C, h, w)`, in [-1, 1]: 4 each, but 1 of latent frame
        0. Whatever n, the latent frames are decoded one after the other.
        """
        self._check_latents(latents)
        state, frames = state.opened("decoder", latents.shape[0]), []
        for number, part in enumerate(self.conv2(latents.transpose(1, 2)).split(1, 2)):
            # the caller's own state stays as it is
            memory = Memory(state, read_once=number > 0)
            frames.append(self.decoder.step(part, memory).transpose(1, 2).clamp(-1.0, 1.0))
            state = memory.state("decoder", state.frames + 1)
        return torch.cat(frames, 1), state

    def normalize(self, latents: Tensor, start: int) -> Tensor:
        """Raw latents `(B, n, C, h, w)` as the diffusion network sees them."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor, start: int) -> Tensor:
        """Inverse of `normalize`."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self._check_latents(latents)
        shaped = (x[:, None, None].to(latents.dtype) for x in (self.latent_mean, self.latent_std))
        mean, std = shaped
        return mean, std

    def _check_video(self, video: Tensor) -> None:
        step = self.config.spatial
        if video.ndim != 5 or video.shape[1] < 1 or video.shape[2] != 3:
            raise ValueError(f"video: expected (B, T >= 1, 3, H, W), found {tuple(video.shape)}")
        if video.shape[3] % step or video.shape[4] % step or 0 in video.shape:
            raise ValueError(
                f"video: expected height and width divisible by {step}, found {tuple(video.shape[3:])}"
            )

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[2] != channels or 0 in latents.shape:
            raise ValueError(f"latents: expected (B, N >= 1, {channels}, h, w), found {tuple(latents.shape)}")


def _run(layers: nn.Sequential, x: Tensor, memory: Memory) -> Tensor:
    """All layers in order; those with a memory step through it."""
    for layer in layers:
        if isinstance(layer, (CausalConv3d, ResidualBlock, FrameAttention, Downsample, Upsample)):
            x = layer.step(x, memory)
        else:
            x = layer(x)
    return x


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    frames = x.shape[2]
    y = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(y, "(b t) c h w -> b c t h w", t=frames)
