"""What runners are made and measured for, and trial chunks of those sizes."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.causal_dit import CausalDiT
from models.context import ChunkPlan
from models.kv_cache import CacheCursor, CacheRing, CacheShape

from .geometry import LatentGeometry
from .guidance import Conditioning, Guidance
from .noise import SeededNoise
from .runner import CommitTask, DenoiseTask, Runner
from .sampler import Sampling


@dataclass(frozen=True)
class Sizes:
    """What a runner is made and measured for.

    Attributes:
        sampling: as streams open with it.
        samplings: with each number of steps that a chunk may take.
        words: tokens of a text.
    """

    geometry: LatentGeometry
    plan: ChunkPlan
    sampling: Sampling
    guidance: Guidance
    samplings: tuple[Sampling, ...] = ()
    words: int = 8

    @property
    def chunk_seconds(self) -> float:
        """How long the pictures of a chunk play."""
        return self.plan.chunk_frames * self.geometry.temporal / self.geometry.fps

    def ring(self, dit: CausalDiT) -> CacheRing:
        """A cache of these sizes."""
        config, weight = dit.config, dit.head.head.weight
        shape = CacheShape(config.layers, config.heads, config.head_dim, self.geometry.token_grid)
        return CacheRing(shape, self.plan, dit.rope, weight.device, weight.dtype)


@dataclass(frozen=True)
class Trial:
    """A chunk to be tried.

    Attributes:
        behind: latent frames that the cache holds.
        frames: of the chunk.
        sampling: None: it is committed, and not denoised.
        motion: whether there are tracks.
        commits: whether it is committed.
    """

    behind: int
    frames: int
    sampling: Sampling | None
    motion: bool = False
    commits: bool = True


@torch.no_grad()
def tried(
    runner: Runner, dit: CausalDiT, sizes: Sizes, ring: CacheRing, trial: Trial
) -> tuple[Tensor, float]:
    """A chunk's latents, and the seconds that it took. What the ring holds is nobody's."""
    config, geometry, weight = dit.config, sizes.geometry, dit.head.head.weight
    about: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    content = ring.begin_rebuild(keep_sink=False)
    cursor = CacheCursor(trial.behind, 0, content, content)
    ring.end_rebuild(cursor)
    area = (geometry.latent_height, geometry.latent_width)
    text = dit.embed_text(torch.zeros(1, sizes.words, config.text_dim, **about))
    motion = torch.zeros(1, trial.frames, config.motion_channels, *area, **about) if trial.motion else None
    latents = torch.zeros(1, trial.frames, config.latent_channels, *area, **about)
    began = time.perf_counter()
    if trial.sampling is not None:
        conditioning = Conditioning(text, text, motion, sizes.guidance)
        noise = SeededNoise(0, weight.device, weight.dtype)
        task = DenoiseTask(ring, cursor, 1, trial.frames, conditioning, noise, trial.sampling)
        latents = runner.denoise(task)
    if trial.commits:
        runner.commit(CommitTask(ring, cursor, latents, (0.0,) * trial.frames, text, motion))
    return latents, time.perf_counter() - began
