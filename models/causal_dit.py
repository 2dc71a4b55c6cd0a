"""The diffusion transformer over video latents: causal student, bidirectional teacher and critic in one
class.

Architecture and parameter names are those of Wan2.1 (https://github.com/Wan-Video/Wan2.1, Apache-2.0) at any
size, with one timestep per latent frame (CausVid, arXiv 2412.07772) and motion channels concatenated at
patchify (MotionStream, arXiv 2511.01266). What a token may look at is decided by the `AttentionContext`
passed in, never by the network.
Legend: B batch, T latent frames, C channels, H W latent size, N tokens per latent frame, D width, S text
segments, L words.
"""

import copy
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import RMSNorm, attend
from .context import AttentionContext
from .patches import Patches
from .precision import exactly
from .rope import RotaryEmbedding3D
from .writer import add_writer, merge_writer

# Strengths, 0 to 10 or so, become waves of angles up to 100: neighbours differ, but not wildly.
_GUIDANCE_SCALE = 10.0


@dataclass(frozen=True, kw_only=True)
class CausalDiTConfig:
    """Sizes of the network. The Wan2.1-T2V-1.3B shape is dim 1536, layers 30, heads 12, ffn_dim 8960,
    text_dim 4096. With `guidance` the network takes guidance strengths as an input (arXiv 2210.03142).
    `writer` is the rank of what its linear layers do differently for frames that are being committed
    (`models.writer`); 0: none. `patch_stride` is how many latent cells lie from one patch to the next; null:
    as many as a patch has, so that none overlap (`models.patches`).

    Raises:
        ValueError: sizes that do not divide, or a rank below 0.
    """

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    latent_channels: int = 16
    motion_channels: int = 0
    patch: int = 2
    text_dim: int = 128
    freq_dim: int = 256
    eps: float = 1e-6
    guidance: bool = False
    writer: int = 0
    patch_stride: int | None = None

    def __post_init__(self) -> None:
        # refuses a stride that does not divide
        Patches.of(self.patch, self.patch_stride)
        if self.writer < 0:
            raise ValueError(f"writer must be a rank >= 0, found {self.writer}")
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads ({self.heads}), found {self.dim}")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, found {self.freq_dim}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def patches(self) -> Patches:
        """How latents are cut into tokens."""
        return Patches.of(self.patch, self.patch_stride)


@dataclass(frozen=True)
class Negative:
    """Words that cross-attention turns away from, for networks that see words once: normalised attention
    guidance (arXiv 2505.21179).

    Attributes:
        keys, values: of every layer, `(B, 1, L, heads, head_dim)`, as a `TextContext` has them.
        scale: how far away; 1 is not at all.
        tau: how many times as large, in the sum of absolute values, a token may become.
        alpha: the share of what is guided in the result.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    scale: float
    tau: float = 2.5
    alpha: float = 0.25

    def guide(self, toward: Tensor, away: Tensor) -> Tensor:
        """What attention to the words, `(..., D)`, and to these has come to, as one."""
        guided = toward * self.scale - away * (self.scale - 1)
        norm = toward.abs().sum(-1, keepdim=True)
        growth = guided.abs().sum(-1, keepdim=True) / norm.clamp(min=1e-7)
        guided = guided * (self.tau / growth.clamp(min=self.tau))
        return self.alpha * guided + (1 - self.alpha) * toward


@dataclass(frozen=True)
class TextContext:
    """Cross-attention keys and values of every layer, computed once per text.

    `keys[i], values[i]`: `(B, S, L, heads, head_dim)` for S text segments; `segment`: `(B, T)` int64, which
    segment each latent frame reads (None when S is 1). `strengths (LoRAs,)` are those of live LoRAs that the
    keys were made under (`models.live_lora`), None in a network without. With `negative` a single segment is
    guided away from other words.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    segment: Tensor | None = None
    strengths: Tensor | None = None
    negative: Negative | None = None

    def size_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def detached(self) -> "TextContext":
        """Without gradient."""
        keys, values = (tuple(x.detach() for x in part) for part in (self.keys, self.values))
        return TextContext(keys, values, self.segment, self.strengths)


class CausalDiT(nn.Module):
    """Predicts the flow-matching velocity `noise - x0` of every latent frame."""

    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, (1, config.patch, config.patch)
        self.rope = RotaryEmbedding3D(config.head_dim, spacing=config.patches.spacing)
        self.patch_embedding = nn.Conv3d(config.latent_channels + config.motion_channels, dim, patch, patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        if config.guidance:
            self.guidance_embedding = nn.Sequential(
                nn.Linear(2 * config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
            )
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.layers))
        self.head = Head(config)
        self._initialize()

    def embed_text(self, text: Tensor, segment: Tensor | None = None) -> TextContext:
        """Text keys and values of all layers.

        Args:
            text: `(B, S, L, text_dim)` or `(B, L, text_dim)`, zero past the end of the words (padding is
                attended to, as in Wan).
            segment: `(B, T)` index into S for every latent frame; needed when S > 1.
        """
        if text.dim() == 3:
            text = text[:, None]
        if text.shape[1] > 1 and segment is None:
            raise ValueError(
                f"text has {text.shape[1]} segments, so `segment` must say which one each latent frame reads"
            )
        hidden = self.text_embedding(text)
        pairs = [block.cross_attn.project(hidden) for block in self._blocks()]
        return TextContext(
            tuple(k for k, _ in pairs), tuple(v for _, v in pairs), segment if text.shape[1] > 1 else None
        )

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext,
        context: AttentionContext,
        motion: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Velocity of the given latent frames.

        Args:
            latents: `(B, T, C, H, W)` noisy latents.
            timesteps: `(B, T)` noise level of each latent frame times 1000, in [0, 1000].
            text: from `embed_text`.
            context: what the tokens attend to besides text.
            motion: `(B, T, motion_channels, H, W)`; None is null motion (zeros).
            guidance: `(B, T, 2)` strengths of text and motion guidance whose result is to be predicted; zeros
                (in some frames) or None (in all) is no wish, as for the clean frames of a commit.

        Returns:
            `(B, T, C, H, W)` in the dtype of `latents`.

        Raises:
            ValueError: channels or latent size do not fit the network, or guidance for a network without
                that input.
        """
        grid = self.token_grid(latents, motion)
        if self.config.motion_channels and motion is None:
            motion = latents.new_zeros(*latents.shape[:2], self.config.motion_channels, *latents.shape[3:])
        pixels = latents if motion is None else torch.cat([latents, motion.to(latents.dtype)], 2)
        patches = self.config.patches
        x = F.linear(patches.cut(pixels), self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        time = self.time_embedding(timestep_embedding(timesteps, self.config.freq_dim).to(x.dtype))
        if guidance is not None:
            time = time + self.embed_guidance(guidance, x.dtype)
        modulation = self.time_projection(time).unflatten(-1, (6, self.config.dim))
        for layer, block in enumerate(self.blocks):
            x = block(x, modulation, text, layer, context)
        return patches.joined(self.head(x, time), grid).to(latents.dtype)

    def token_grid(self, latents: Tensor, motion: Tensor | None = None) -> tuple[int, int]:
        """Rows and columns of tokens for latents of this size; checks that they fit the network."""
        channels, height, width = latents.shape[2:]
        patches = self.config.patches
        if channels != self.config.latent_channels or not patches.fit(height, width):
            raise ValueError(
                f"latents must be (B, T, {self.config.latent_channels}, H, W) with H and W multiples of "
                f"{patches.stride} from {patches.size} on, found {tuple(latents.shape)}"
            )
        if motion is not None and motion.shape[2] != self.config.motion_channels:
            raise ValueError(
                f"motion must have {self.config.motion_channels} channels, found {motion.shape[2]}"
            )
        return patches.grid(height, width)

    def embed_guidance(self, strengths: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to the time embedding for guidance strengths `(B, T, 2)`: `(B, T, dim)`; zero where
        both are.

        Raises:
            ValueError: a network without that input.
        """
        if not self.config.guidance:
            raise ValueError("guidance strengths given to a network without a guidance input")
        waves = timestep_embedding(strengths * _GUIDANCE_SCALE, self.config.freq_dim)
        embedded: Tensor = self.guidance_embedding(waves.flatten(-2).to(dtype))
        return embedded * (strengths > 0).any(-1, keepdim=True)

    def _blocks(self) -> list["DiTBlock"]:
        return cast("list[DiTBlock]", list(self.blocks))

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)  # type: ignore[arg-type]
        for linear in (
            self.text_embedding[0],
            self.text_embedding[2],
            self.time_embedding[0],
            self.time_embedding[2],
        ):
            nn.init.normal_(linear.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.head.weight)
        if self.config.guidance:
            # no influence at first: a student starts as the network it was made from
            nn.init.zeros_(self.guidance_embedding[2].weight)  # type: ignore[arg-type]
        for block in self.blocks if self.config.writer else ():
            add_writer(block, self.config.writer)


class DiTBlock(nn.Module):
    """Self-attention and feed-forward, both modulated per latent frame, around an ungated text
    cross-attention.
    """

    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self, x: Tensor, time: Tensor, text: TextContext, layer: int, context: AttentionContext
    ) -> Tensor:
        """`x (B, T, N, D)`, `time (B, T, 6, D)`."""
        changes = self.modulation + time
        found = context.attend(layer, *self.asked(x, changes))
        x = self.joined(x, changes, found)
        x = x + self.cross_attn(self.norm3(x), text, layer)
        return self.fed(x, changes)

    def asked(self, x: Tensor, changes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention, `(B, T * N, heads, head_dim)` each; `changes (B, T, 6,
        D)` are shift, scale and gate of it and of the feed-forward. This and the two below are functions of
        tensors alone, which can be compiled.
        """
        shift, scale, _ = _three(changes, 0)
        return self.self_attn.ask((self._norm(x) * (1 + scale) + shift).flatten(1, 2))

    def joined(self, x: Tensor, changes: Tensor, found: Tensor) -> Tensor:
        """`x` and what self-attention `found (B, T * N, heads, head_dim)`."""
        _, _, gate = _three(changes, 0)
        return x + gate * self.self_attn.o(found.flatten(2)).view_as(x)

    def fed(self, x: Tensor, changes: Tensor) -> Tensor:
        """`x` and what the feed-forward makes of it."""
        shift, scale, gate = _three(changes, 3)
        return x + gate * self.ffn(self._norm(x) * (1 + scale) + shift)

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


def _three(changes: Tensor, first: int) -> tuple[Tensor, ...]:
    """Shift, scale and gate, `(B, T, 1, D)` each."""
    return changes[:, :, first : first + 3, None].unbind(2)


class _Projections(nn.Module):
    """Query, key, value and output projections with RMS-normed queries and keys (over the full width, before
    the head split).
    """

    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(_Projections):
    """Attention over the chunk's own tokens and whatever the context holds."""

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, L, heads, head_dim)` of `x (B, L, D)`; `o` takes what is found."""
        return (
            self.split(self.norm_q(self.q(x))),
            self.split(self.norm_k(self.k(x))),
            self.split(self.v(x)),
        )


class CrossAttention(_Projections):
    """Attention to the words of the text segment that a latent frame reads."""

    def project(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, S, L, heads, head_dim)` of embedded text `(B, S, L, D)`."""
        return self.split(self.norm_k(self.k(text))), self.split(self.v(text))

    def forward(self, x: Tensor, text: TextContext, layer: int) -> Tensor:
        q = self.split(self.norm_q(self.q(x)))
        k, v = text.keys[layer], text.values[layer]
        if text.segment is None:
            out = attend(q.flatten(1, 2), k[:, 0], v[:, 0]).flatten(2)
            if text.negative is not None:
                k, v = text.negative.keys[layer], text.negative.values[layer]
                out = text.negative.guide(out, attend(q.flatten(1, 2), k[:, 0], v[:, 0]).flatten(2))
            return self.o(out).view_as(x)
        rows = torch.arange(len(x), device=x.device)[:, None]
        k, v = k[rows, text.segment].flatten(0, 1), v[rows, text.segment].flatten(0, 1)
        return self.o(attend(q.flatten(0, 1), k, v).flatten(2)).view_as(x)


class Head(nn.Module):
    """Modulated norm and projection to patches."""

    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.latent_channels * config.patch**2)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x (B, T, N, D)`, `time (B, T, D)`."""
        shift, scale = (self.modulation + time[:, :, None])[:, :, :, None].unbind(2)
        return self.head(F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift)


def twin(dit: CausalDiT) -> CausalDiT:
    """Another module over the same tensors."""
    shared = {id(x): x for x in (*dit.parameters(), *dit.buffers())}
    return copy.deepcopy(dit, shared)


def committing(dit: CausalDiT) -> CausalDiT:
    """The network that does with all frames what one with a writer does with committed ones; tensors that
    the writer does not change are shared.
    """
    plain = twin(dit)
    plain.config = replace(dit.config, writer=0)
    for block in plain.blocks:
        merge_writer(block)
    return plain


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps in 0..1000, cosines first, computed in float64: `(...)` -> `(...,
    dim)`.
    """
    half = dim // 2

    def waves(values: Tensor) -> Tensor:
        ladder = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=values.device) / half)
        angles = values.to(torch.float64)[..., None] * ladder
        return torch.cat([angles.cos(), angles.sin()], -1)

    return exactly(waves, timesteps)
