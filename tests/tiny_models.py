"""Random models of a few thousand parameters for tests, and the check that a test depends on its
mechanism.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import ChunkPlan
from models.kv_cache import CacheCursor, CacheRing, CacheShape, CacheView, RopeMode

GRID = (2, 3)


def randomize(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Give every parameter, zero-initialised ones too, a random value (norm scales around 1)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan = parameter[0].numel() if parameter.dim() > 1 else 1
        is_norm = "norm" in name and parameter.dim() == 1 and name.endswith("weight")
        parameter.data = (
            1 + 0.2 * noise if is_norm else noise * (1.0 / fan**0.5 if parameter.dim() > 1 else scale)
        )
    return module.eval()


def tiny_dit(motion_channels: int = 3, **sizes: int) -> CausalDiT:
    """A two-layer DiT with random weights whose attention is far from uniform."""
    defaults = {
        "dim": 24,
        "layers": 2,
        "heads": 2,
        "ffn_dim": 32,
        "latent_channels": 4,
        "text_dim": 8,
        "freq_dim": 16,
    }
    config = CausalDiTConfig(motion_channels=motion_channels, **(defaults | sizes))
    dit = CausalDiT(config)
    randomize(dit)
    return dit


def tiny_ring(dit: CausalDiT, plan: ChunkPlan, batch: int = 1, rope_mode: RopeMode = "relative") -> CacheRing:
    shape = CacheShape(dit.config.layers, dit.config.heads, dit.config.head_dim, GRID, batch)
    return CacheRing(shape, plan, dit.rope, torch.device("cpu"), dit.head.head.weight.dtype, rope_mode)


class DrivenCache:
    """A ring with the cursor of a stream that commits every chunk it begins; itself an `AttentionContext`."""

    def __init__(self, ring: CacheRing) -> None:
        self.ring, self.cursor = ring, CacheCursor()
        self.view: CacheView | None = None

    def begin(self, frames: int) -> None:
        self.view = self.ring.view(self.cursor, frames)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self.view is not None
        return self.view.attend(layer, q, k, v)

    def commit(self) -> None:
        assert self.view is not None
        self.cursor = self.cursor.moved(self.view.frames)

    def state(self) -> dict[str, Tensor]:
        return self.ring.state(self.cursor)


def tiny_cache(
    dit: CausalDiT, plan: ChunkPlan, batch: int = 1, rope_mode: RopeMode = "relative"
) -> DrivenCache:
    return DrivenCache(tiny_ring(dit, plan, batch, rope_mode))


def tiny_latents(frames: int, seed: int = 0, batch: int = 1, channels: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, channels, GRID[0] * 2, GRID[1] * 2, generator=generator)


def assert_needs(
    check: Callable[[], None], monkeypatch: pytest.MonkeyPatch, target: object, name: str, patch: object
) -> None:
    """Run an invariant's check as it is, and once more with its mechanism patched out: then it must fail."""
    check()
    with monkeypatch.context() as patched:
        patched.setattr(target, name, patch)
        with pytest.raises(AssertionError):
            check()
