"""Causal video tokenizer for images and video, after OmniTokenizer (arXiv 2406.09399) but truly causal.

Frame 0 and every later group of `temporal` frames become one latent frame each. Spatial window attention and
temporal causal attention are separate layers. The temporal context is bounded, so a stream's state has a
constant size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .bottleneck import FSQBottleneck, KLBottleneck, Posterior, VQBottleneck
from .tokenizer_layers import Past, PixelRefiner, SpatialBlock, TemporalBlock, TokenNorm
from .tokenizer_pca import (
    LinearCodec,
    choose_gain,
    fit_aligned_pca,
    fit_codebook,
    fit_looked_up,
    fit_rounded,
)


@dataclass(frozen=True)
class VideoTokenizerConfig:
    """Shape of a tokenizer. `window` is in cells of the token grid, `temporal_context` in latent frames.

    `bottleneck` is `kl` (continuous latents, for diffusion), `fsq` (codes: channel c takes `fsq_levels[c]`
    values) or `vq` (codes: `vq_groups` groups of channels take one of `vq_codes` entries each); all else is
    the same network.
    """

    in_channels: int = 3
    patch: int = 8
    temporal: int = 4
    latent_channels: int = 16
    dim: int = 192
    heads: int = 3
    window: int = 4
    temporal_context: int = 3
    encoder_spatial: int = 3
    encoder_temporal: int = 2
    decoder_temporal: int = 2
    decoder_spatial: int = 3
    ffn_mult: int = 4
    refine_channels: int = 32
    qk_norm: bool = False
    bottleneck: str = "kl"
    fsq_levels: tuple[int, ...] = ()
    vq_codes: int | None = None
    vq_groups: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = self.__dict__[field.name]
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name}: expected an integer of at least 1, found {value!r}")
        if self.dim % self.heads:
            raise ValueError(f"dim: expected a multiple of heads ({self.heads}), found {self.dim}")
        if self.patch % 2:
            raise ValueError(f"patch: expected an even size (pixel refinement halves it), found {self.patch}")
        if self.latent_channels > self.first_patch_dim:
            raise ValueError(
                f"latent_channels: expected at most the {self.first_patch_dim} numbers of an image patch, "
                f"found {self.latent_channels}"
            )
        if self.bottleneck not in ("kl", "fsq", "vq"):
            raise ValueError(f"bottleneck: expected 'kl', 'fsq' or 'vq', found {self.bottleneck!r}")
        self._check_codebooks()
        levels = self.latent_channels if self.bottleneck == "fsq" else 0
        if len(self.fsq_levels) != levels or any(count < 2 for count in self.fsq_levels):
            raise ValueError(
                f"fsq_levels: expected {levels} numbers of at least 2 (one per latent channel of an fsq "
                f"tokenizer), found {list(self.fsq_levels)}"
            )

    def _check_codebooks(self) -> None:
        if (self.bottleneck == "vq") != (self.vq_codes is not None):
            expected = "a number of entries" if self.bottleneck == "vq" else "none without bottleneck: vq"
            raise ValueError(f"vq_codes: expected {expected}, found {self.vq_codes}")
        if self.vq_codes is not None and self.vq_codes < 2:
            raise ValueError(f"vq_codes: expected at least 2, found {self.vq_codes}")
        if self.latent_channels % self.vq_groups or (self.vq_groups > 1 and self.bottleneck != "vq"):
            expected = f"a divisor of latent_channels ({self.latent_channels}), 1 without bottleneck: vq"
            raise ValueError(f"vq_groups: expected {expected}, found {self.vq_groups}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoTokenizerConfig:
        """Config from a plain mapping; ValueError on a key that is not a field."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"video tokenizer config: unknown keys {unknown}")
        return cls(**{**values, "fsq_levels": tuple(values.get("fsq_levels", ()))})

    @property
    def first_patch_dim(self) -> int:
        """Numbers in a patch of frame 0."""
        return self.in_channels * self.patch**2

    @property
    def group_patch_dim(self) -> int:
        """Numbers in a patch of a later group of frames."""
        return self.temporal * self.first_patch_dim


@dataclass(frozen=True)
class TokenizerState:
    """What a stream's encoder or decoder remembers. It is a value: no call modifies a state it was given.

    `keys` and `values` are `(layers, B, H, W, temporal_context - 1, D)`, newest latent frame last, of which
    the last `valid` count; their size does not change after the first chunk. Before it they are empty and
    only carry batch, device and dtype. They carry no gradient. `frames` is the number of pixel frames seen,
    `part` is "new", "encoder" or "decoder".
    """

    keys: Tensor
    values: Tensor
    valid: int
    frames: int
    part: str

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as tensors, for a snapshot."""
        return {
            f"{self.part}.keys": self.keys,
            f"{self.part}.values": self.values,
            "valid": torch.tensor(self.valid),
            "frames": torch.tensor(self.frames),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TokenizerState:
        """Inverse of `tensors`; ValueError when the names are not those of a state."""
        for part in ("new", "encoder", "decoder"):
            names = {f"{part}.keys", f"{part}.values", "valid", "frames"}
            if names == set(tensors):
                counts = int(tensors["valid"]), int(tensors["frames"])
                return cls(tensors[f"{part}.keys"], tensors[f"{part}.values"], *counts, part)
        raise ValueError(f"tokenizer state: expected keys, values, valid and frames, found {sorted(tensors)}")


class SpatialStack(nn.Sequential):
    """Spatial blocks whose windows alternate between shift 0 and half a window."""

    def __init__(self, config: VideoTokenizerConfig, blocks: int) -> None:
        c = config
        shifts = [(c.window // 2) * (i % 2) for i in range(blocks)]
        super().__init__(*(SpatialBlock(c.dim, c.heads, c.window, s, c.ffn_mult, c.qk_norm) for s in shifts))


class TemporalStack(nn.Module):
    """Temporal blocks, one-shot over a clip or step by step over a stream."""

    def __init__(self, config: VideoTokenizerConfig, blocks: int) -> None:
        super().__init__()
        c = config
        self.blocks = nn.ModuleList(
            TemporalBlock(c.dim, c.heads, c.temporal_context, c.ffn_mult, c.qk_norm) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """A whole clip of tokens `(B, N, H, W, D)`."""
        for block in self.blocks:
            x = block(x)
        return x

    def step(self, x: Tensor, state: TokenizerState) -> tuple[Tensor, Tensor, Tensor]:
        """The next tokens of a stream; returns tokens and the new keys and values of a `TokenizerState`."""
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, TemporalBlock)
            x, past = block.step(x, Past(state.keys[layer], state.values[layer], state.valid))
            keys.append(past.keys.detach())
            values.append(past.values.detach())
        return x, torch.stack(keys), torch.stack(values)


class SplitLinear(nn.Module):
    """Two linear maps: one for frame 0, one for later groups of frames."""

    def __init__(self, first: tuple[int, int], group: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Linear(*first)
        self.group = nn.Linear(*group)

    def forward(self, first: Tensor | None, groups: Tensor) -> tuple[Tensor | None, Tensor]:
        """Both inputs mapped; either may be absent (None, or no group)."""
        return None if first is None else self.first(first), self.group(groups)

    def zero(self) -> None:
        """Make both maps zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Encoder(nn.Module):
    """Patches to features `(B, N, H, W, dim)` and skip latents `(B, N, H, W, latent_channels)`."""

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        c = config
        self.embed = SplitLinear((c.first_patch_dim, c.dim), (c.group_patch_dim, c.dim))
        self.skip = SplitLinear(
            (c.first_patch_dim, c.latent_channels), (c.group_patch_dim, c.latent_channels)
        )
        self.spatial = SpatialStack(c, c.encoder_spatial)
        self.temporal = TemporalStack(c, c.encoder_temporal)
        self.norm = TokenNorm(c.dim)


class Decoder(nn.Module):
    """Latents to patches: features, a zero-initialised head, a linear skip and the pixel refinement."""

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        c = config
        self.embed = nn.Linear(c.latent_channels, c.dim)
        self.temporal = TemporalStack(c, c.decoder_temporal)
        self.spatial = SpatialStack(c, c.decoder_spatial)
        self.norm = TokenNorm(c.dim)
        self.head = SplitLinear((c.dim, c.first_patch_dim), (c.dim, c.group_patch_dim))
        self.skip = SplitLinear(
            (c.latent_channels, c.first_patch_dim), (c.latent_channels, c.group_patch_dim)
        )
        self.refine = PixelRefiner(c.in_channels, c.refine_channels)
        self.reset_output()

    def reset_output(self) -> None:
        """Let the network contribute nothing beside the skip."""
        self.head.zero()
        nn.init.zeros_(self.refine.outer.weight)
        assert self.refine.outer.bias is not None
        nn.init.zeros_(self.refine.outer.bias)


def _join(first: Tensor | None, groups: Tensor) -> Tensor:
    return groups if first is None else torch.cat([first[:, None], groups], dim=1)


def _plain(module: SplitLinear, first: Tensor | None, groups: Tensor) -> tuple[Tensor | None, Tensor]:
    """A skip evaluated in the weights' own precision: under autocast it would limit the reconstruction."""
    dtype = module.group.weight.dtype
    with torch.autocast(groups.device.type, enabled=False):
        result: tuple[Tensor | None, Tensor] = module(
            None if first is None else first.to(dtype), groups.to(dtype)
        )
    return result


class VideoTokenizer(nn.Module):
    """Encoder, bottleneck and decoder for video `(B, T, C, H, W)` in about [-1, 1].

    Latents are `(B, N, C, h, w)` with N = 1 + ceil((T - 1) / temporal), h = H / patch, w = W / patch.
    `encode` and `decode` work on whole clips in one shot, `encode_chunk` and `decode_chunk` on streams, with
    the same results.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.bottleneck = _bottleneck(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(2, config.latent_channels))
        self.register_buffer("latent_std", torch.ones(2, config.latent_channels))

    def forward(self, video: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Posterior]:
        """Reconstruction of a clip from one draw of its posterior, as long as the clip, and the posterior."""
        posterior = self.encode(video)
        return self.decode(posterior.sample(generator), video.shape[1]), posterior

    def encode(self, video: Tensor) -> Posterior:
        """Posterior of a clip of any length T >= 1; its end is repeated up to the next 1 + k * temporal."""
        self._check_video(video)
        missing = -(video.shape[1] - 1) % self.config.temporal
        if missing:
            video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        first, groups = self.patchify(video)
        tokens = self.encoder.spatial(self._residual(_join(*self.encoder.embed(first, groups))))
        tokens = self.encoder.temporal(tokens)
        return self._posterior(tokens, first, groups)

    def decode(self, latents: Tensor, num_frames: int | None = None) -> Tensor:
        """Video of latents `(B, N, C, h, w)`: `num_frames` of its 1 + (N - 1) * temporal frames, or all."""
        self._check_latents(latents)
        available = 1 + (latents.shape[1] - 1) * self.config.temporal
        if num_frames is not None and not 1 <= num_frames <= available:
            raise ValueError(f"num_frames: expected 1 to {available}, found {num_frames}")
        tokens = self.decoder.temporal(self._residual(self.decoder.embed(latents.movedim(2, -1))))
        return self._pixels(tokens, latents, starts=True)[:, :num_frames]

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> TokenizerState:
        """The state before a stream's first chunk, for either `encode_chunk` or `decode_chunk`."""
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, found {batch}")
        empty = torch.zeros(0, batch, 0, 0, self.config.temporal_context - 1, self.config.dim)
        empty = empty.to(device=device, dtype=dtype)
        return TokenizerState(empty, empty.clone(), 0, 0, "new")

    def state_from_tensors(self, tensors: Mapping[str, Tensor]) -> TokenizerState:
        """A state from what its `tensors` gave."""
        return TokenizerState.from_tensors(tensors)

    def encode_chunk(self, video: Tensor, state: TokenizerState) -> tuple[Posterior, TokenizerState]:
        """Posterior of a stream's next frames: 1 + k * temporal in the first call, k * temporal later."""
        self._check_video(video)
        frames, temporal = video.shape[1], self.config.temporal
        starts = state.frames == 0
        if (frames - starts) % temporal:
            expected = f"1 + k * {temporal}" if starts else f"k * {temporal}"
            raise ValueError(f"video: expected {expected} frames after {state.frames}, found {frames}")
        grid = (video.shape[3] // self.config.patch, video.shape[4] // self.config.patch)
        state = self._opened(state, "encoder", video.shape[0], grid)
        first, groups = self.patchify(video, starts)
        tokens = self.encoder.spatial(self._residual(_join(*self.encoder.embed(first, groups))))
        tokens, keys, values = self.encoder.temporal.step(tokens, state)
        return self._posterior(tokens, first, groups), self.advanced(state, keys, values, tokens.shape[1])

    def encode_next(self, video: Tensor, state: TokenizerState) -> tuple[Tensor, TokenizerState]:
        """See `VideoCodec`."""
        posterior, after = self.encode_chunk(video, state)
        return posterior.mean, after

    def decode_chunk(self, latents: Tensor, state: TokenizerState) -> tuple[Tensor, TokenizerState]:
        """Frames of a stream's next latents `(B, n, C, h, w)`: `temporal` each, but one of latent frame 0."""
        self._check_latents(latents)
        starts = state.frames == 0
        state = self._opened(state, "decoder", latents.shape[0], (latents.shape[3], latents.shape[4]))
        tokens = self._residual(self.decoder.embed(latents.movedim(2, -1)))
        tokens, keys, values = self.decoder.temporal.step(tokens, state)
        video = self._pixels(tokens, latents, starts)
        return video, self.advanced(state, keys, values, latents.shape[1])

    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store statistics `(2, C)` of raw latents: row 0 for latent frame 0, row 1 for later ones."""
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.latent_mean.shape or not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"{name}: expected finite numbers of shape {tuple(self.latent_mean.shape)}, "
                    f"found shape {tuple(value.shape)}: {value.tolist()}"
                )
        if not bool((std > 0).all()):
            raise ValueError(f"std: expected positive numbers, found a least one of {float(std.min())}")
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def normalize(self, latents: Tensor, start: int) -> Tensor:
        """Raw latents `(B, n, C, h, w)` to about unit variance; `start` is the index of the first one."""
        mean, std = self._statistics(latents, start)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor, start: int) -> Tensor:
        """Inverse of `normalize`."""
        mean, std = self._statistics(latents, start)
        return latents * std + mean

    def patchify(self, video: Tensor, starts: bool = True) -> tuple[Tensor | None, Tensor]:
        """Patches of frame 0 `(B, h, w, P)`, None unless `starts`; of groups `(B, n, h, w, temporal * P)`.

        Order in a patch: (time,) row, column, channel. The frames must complete their groups.
        """
        patch = self.config.patch
        sizes = {"p": patch, "q": patch}
        first = None
        if starts:
            first = rearrange(video[:, 0], "b c (h p) (w q) -> b h w (p q c)", **sizes)
            video = video[:, 1:]
        count = video.shape[1] // self.config.temporal
        pattern = "b n t c (h p) (w q) -> b n h w (t p q c)"
        groups = rearrange(video.unflatten(1, (count, self.config.temporal)), pattern, **sizes)
        return first, groups

    def unpatchify(self, first: Tensor | None, groups: Tensor) -> Tensor:
        """Inverse of `patchify`: video `(B, T, C, H, W)`."""
        c = self.config
        sizes = {"p": c.patch, "q": c.patch, "c": c.in_channels}
        pattern = "b n h w (t p q c) -> b n t c (h p) (w q)"
        video = rearrange(groups, pattern, t=c.temporal, **sizes).flatten(1, 2)
        if first is None:
            return video
        return _join(rearrange(first, "b h w (p q c) -> b c (h p) (w q)", **sizes), video)

    @torch.no_grad()
    def initialize_from_pca(self, first_patches: Tensor, group_patches: Tensor) -> None:
        """Make the tokenizer the linear PCA of the given patches, in the order of `patchify`.

        `first_patches` is `(N, P)`, `group_patches` `(M, temporal * P)`. Each component is scaled by its
        eigenvalue ** -0.25, the image basis is turned towards the video basis, and all network outputs become
        zero. A discrete bottleneck gets the gain that suits its levels, or codebooks that suit the patches.
        """
        c = self.config
        for name, patches, size in (
            ("first_patches", first_patches, c.first_patch_dim),
            ("group_patches", group_patches, c.group_patch_dim),
        ):
            if patches.ndim != 2 or patches.shape[1] != size or len(patches) <= c.latent_channels:
                raise ValueError(
                    f"{name}: expected more than {c.latent_channels} rows of {size} numbers, "
                    f"found shape {tuple(patches.shape)}"
                )
        image, video = fit_aligned_pca(first_patches, group_patches, c.latent_channels)
        if isinstance(self.bottleneck, FSQBottleneck):
            gain = choose_gain(video, group_patches, c.fsq_levels)
            image = fit_rounded(image, first_patches, gain, c.fsq_levels)
            video = fit_rounded(video, group_patches, gain, c.fsq_levels)
            self.bottleneck.gain.copy_(gain)
        if isinstance(self.bottleneck, VQBottleneck):
            book = fit_codebook(video, group_patches, *self.bottleneck.codebook.shape[:2])
            image = fit_looked_up(image, first_patches, book)
            video = fit_looked_up(video, group_patches, book)
            self.bottleneck.codebook.copy_(book)
        _load_codec(image, self.encoder.skip.first, self.decoder.skip.first)
        _load_codec(video, self.encoder.skip.group, self.decoder.skip.group)
        self.bottleneck.reset_output()
        self.decoder.reset_output()

    def _residual(self, tokens: Tensor) -> Tensor:
        """Tokens in the weights' own precision, which the sums of the network then keep under autocast."""
        return tokens.to(self.decoder.embed.weight.dtype)

    def _posterior(self, tokens: Tensor, first: Tensor | None, groups: Tensor) -> Posterior:
        skip = _join(*_plain(self.encoder.skip, first, groups))
        posterior: Posterior = self.bottleneck(self.encoder.norm(tokens), skip)
        return posterior

    def _pixels(self, tokens: Tensor, latents: Tensor, starts: bool) -> Tensor:
        """Spatial half of the decoder; `starts` says that the first token is latent frame 0."""
        tokens = self.decoder.norm(self.decoder.spatial(tokens))
        latents = latents.movedim(2, -1)
        later = int(starts)
        first = (tokens[:, 0], latents[:, 0]) if starts else (None, None)
        net = self.decoder.head(first[0], tokens[:, later:])
        skip = _plain(self.decoder.skip, first[1], latents[:, later:])
        image = None if skip[0] is None else skip[0] + net[0]
        video: Tensor = self.decoder.refine(self.unpatchify(image, skip[1] + net[1]))
        return video

    def _statistics(self, latents: Tensor, start: int) -> tuple[Tensor, Tensor]:
        self._check_latents(latents)
        if start < 0:
            raise ValueError(f"start: expected the index of a latent frame, found {start}")
        rows = [0 if index == 0 else 1 for index in range(start, start + latents.shape[1])]
        mean, std = (
            torch.stack([table[row] for row in rows]) for table in (self.latent_mean, self.latent_std)
        )
        return mean[None, :, :, None, None].to(latents.dtype), std[None, :, :, None, None].to(latents.dtype)

    def _opened(self, state: TokenizerState, part: str, batch: int, grid: tuple[int, int]) -> TokenizerState:
        """The state with its tensors allocated; ValueError where it belongs to another kind of stream."""
        if state.keys.shape[1] != batch:
            raise ValueError(f"state: expected a batch of {batch}, found {state.keys.shape[1]}")
        if state.part == "new":
            layers = self.config.encoder_temporal if part == "encoder" else self.config.decoder_temporal
            keys = state.keys.new_zeros(layers, batch, *grid, *state.keys.shape[-2:])
            return TokenizerState(keys, torch.zeros_like(keys), 0, 0, part)
        if state.part != part:
            raise ValueError(f"state: expected one of the {part}, found one of the {state.part}")
        if tuple(state.keys.shape[2:4]) != grid:
            raise ValueError(f"state: expected a grid of {grid}, found {tuple(state.keys.shape[2:4])}")
        return state

    def advanced(self, state: TokenizerState, keys: Tensor, values: Tensor, count: int) -> TokenizerState:
        """The state after `count` more latent frames."""
        fresh = 1 if state.frames == 0 else 0
        frames = state.frames + fresh + (count - fresh) * self.config.temporal
        valid = min(state.valid + count, self.config.temporal_context - 1)
        return TokenizerState(keys, values, valid, frames, state.part)

    def _check_video(self, video: Tensor) -> None:
        c = self.config
        if video.ndim != 5 or video.shape[1] < 1 or video.shape[2] != c.in_channels:
            raise ValueError(
                f"video: expected (B, T >= 1, {c.in_channels}, H, W), found {tuple(video.shape)}"
            )
        if video.shape[3] % c.patch or video.shape[4] % c.patch or 0 in video.shape:
            raise ValueError(
                f"video: expected height and width divisible by {c.patch}, found {tuple(video.shape[3:])}"
            )

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[2] != channels or 0 in latents.shape:
            raise ValueError(f"latents: expected (B, N >= 1, {channels}, h, w), found {tuple(latents.shape)}")


def _bottleneck(config: VideoTokenizerConfig) -> KLBottleneck | FSQBottleneck | VQBottleneck:
    if config.bottleneck == "fsq":
        return FSQBottleneck(config.dim, config.fsq_levels)
    if config.vq_codes is not None:
        return VQBottleneck(config.dim, config.latent_channels, config.vq_groups, config.vq_codes)
    return KLBottleneck(config.dim, config.latent_channels)


def _load_codec(codec: LinearCodec, encode: nn.Linear, decode: nn.Linear) -> None:
    """Write a linear codec into the weights of two skips."""
    encode.weight.copy_(codec.encode.T)
    encode.bias.copy_(-codec.mean @ codec.encode)
    decode.weight.copy_(codec.decode.T)
    decode.bias.copy_(codec.mean)
