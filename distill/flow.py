"""The flow-matching objective of the causal model: network bundle, noise levels and loss."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT
from models.context import ChunkPlan, MaskedContext, SequenceFrame
from models.motion_encoder import MotionEncoder, Tracks
from models.text_encoder import TextEncoder
from streamgen.scheduler import add_noise, velocity_target


@dataclass(frozen=True)
class FlowBatch:
    """One micro-batch.

    `x0, noise (B, T, C, h, w)`; `sigma (B, T)` noise level of each latent frame; `weight (B, T)` and
    `focus (B, T, h, w)` the shares of frames and of cells in
    the loss (0 for clean context); `words (B, S, L)` int64 with the last segment empty (no text); `segment
    (B, T)`; `tracks` over `1 + 4 (T - 1)` pixel frames.
    """

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    weight: Tensor
    focus: Tensor
    words: Tensor
    segment: Tensor
    tracks: Tracks

    def to(self, device: torch.device) -> "FlowBatch":
        tensors = {name: value.to(device) for name, value in vars(self).items() if name != "tracks"}
        return FlowBatch(
            **tensors, tracks=Tracks(**{name: value.to(device) for name, value in vars(self.tracks).items()})
        )


class CausalFlow(nn.Module):
    """DiT, text encoder and motion encoder with the loss in forward, which is what data parallelism wraps."""

    def __init__(
        self, dit: CausalDiT, text_encoder: TextEncoder, motion_encoder: MotionEncoder, plan: ChunkPlan
    ) -> None:
        super().__init__()
        self.dit, self.text_encoder, self.motion_encoder = dit, text_encoder, motion_encoder
        self.plan = plan
        self._contexts: dict[tuple[int, int, int, str], MaskedContext] = {}

    def forward(self, batch: FlowBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Weighted mean squared error of the velocity, and the same by noise level."""
        latent_grid = (batch.x0.shape[3], batch.x0.shape[4])
        text = self.dit.embed_text(self.text_encoder(batch.words), batch.segment)
        motion = self.motion_encoder(batch.tracks, latent_grid, first=True)
        noisy = add_noise(batch.x0, batch.noise, batch.sigma)
        velocity = self.dit(noisy, batch.sigma * 1000, text, self._context(noisy), motion)
        squares = (velocity.float() - velocity_target(batch.x0, batch.noise)).square().mean(2)
        error = (squares * batch.focus).sum((2, 3)) / batch.focus.sum((2, 3))
        loss = (error * batch.weight).sum() / batch.weight.sum().clamp_min(1e-6)
        return loss, _by_level(error.detach(), batch)

    def _context(self, latents: Tensor) -> MaskedContext:
        grid = self.dit.token_grid(latents)
        key = (latents.shape[1], *grid, str(latents.device))
        if key not in self._contexts:
            frames = [SequenceFrame(i) for i in range(latents.shape[1])]
            self._contexts[key] = MaskedContext(self.dit.rope, frames, self.plan, grid, latents.device)
        return self._contexts[key]


def _by_level(error: Tensor, batch: FlowBatch) -> dict[str, Tensor | float]:
    """Mean error at low (< 1/3), middle and high (> 2/3) noise, the instrument for what the network learns
    first.
    """
    out: dict[str, Tensor | float] = {}
    for name, low, high in (("low", 0.0, 1 / 3), ("mid", 1 / 3, 2 / 3), ("high", 2 / 3, 1.01)):
        chosen = batch.weight * ((batch.sigma >= low) & (batch.sigma < high))
        if bool(chosen.any()):
            out[f"error_{name}"] = (error * chosen).sum() / chosen.sum()
    return out


def sample_sigmas(shape: tuple[int, ...], shift: float, generator: torch.Generator) -> Tensor:
    """Uniform levels pushed towards noise by the timestep shift."""
    u = torch.rand(shape, generator=generator)
    return shift * u / (1 + (shift - 1) * u)
