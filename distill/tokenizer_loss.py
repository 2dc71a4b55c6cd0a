"""What the tokenizer is trained with: reconstruction and, if asked for, what a reader sees and a game."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from models.bottleneck import Posterior
from models.video_tokenizer import VideoTokenizer

from .config import Checked, NonNegative
from .evaluation.features import ReaderFeatures


@dataclass(frozen=True)
class LossConfig(Checked, section="loss"):
    """Weights of the loss terms; an object's cells count 1 + `object` times, moving ones 1 + `motion`.

    `commitment` holds features and codebooks together (of a `vq` bottleneck alone); `perceptual` compares
    what the evaluation's reader sees, `adversarial` is the part of a game against `PatchCritic`: 0 is
    without.
    """

    l1: NonNegative = 1.0
    mse: NonNegative = 1.0
    temporal: NonNegative = 0.2
    kl: NonNegative = 1e-6
    object: NonNegative = 3.0
    motion: NonNegative = 3.0
    commitment: NonNegative = 1.0
    perceptual: NonNegative = 0.0
    adversarial: NonNegative = 0.0


@dataclass(frozen=True)
class Clips:
    """`video` float (B, T, 3, H, W) in [-1, 1]; `objects`, `moving` (B, T, 1, H, W), 1 in such cells."""

    video: Tensor
    objects: Tensor
    moving: Tensor


class TokenizerLoss(nn.Module):
    """The tokenizer and its loss in one forward, which is what data parallelism wraps.

    `baseline` keeps (psnr, psnr_moving, psnr_object) of the PCA initialisation, in dB; NaN until measured.
    """

    baseline: Tensor

    def __init__(
        self, tokenizer: VideoTokenizer, config: LossConfig, perceptual: ReaderFeatures | None = None
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.perceptual = perceptual
        self.register_buffer("baseline", torch.full((3,), float("nan")))

    def forward(
        self, clips: Clips, judge: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss (scalar) and its terms; `judge` says how much videos look like clips."""
        config, video = self.config, clips.video
        decoded, posterior = self.reconstruction(video)
        weight = 1.0 + torch.maximum(config.object * clips.objects, config.motion * clips.moving)
        error = decoded - video
        terms = {
            "l1": _mean(error.abs(), weight),
            "mse": _mean(error.square(), weight),
            "kl": posterior.kl().float(),
        }
        if self.tokenizer.config.bottleneck == "vq":
            terms["commitment"] = posterior.commitment().float()
        if video.shape[1] > 1:
            terms["temporal"] = _mean((error[:, 1:] - error[:, :-1]).abs(), weight[:, 1:])
        if self.perceptual is not None:
            seen = [self.perceptual.maps(x.flatten(0, 1)) for x in (decoded, video)]
            terms["perceptual"] = (seen[0] - seen[1]).abs().sum(1).mean()
        if judge is not None:
            terms["adversarial"] = softplus(judge(video).detach() - judge(decoded)).mean()
        loss = torch.stack([vars(config)[name] * term for name, term in terms.items()]).sum()
        return loss, {name: term.detach() for name, term in terms.items()}

    def reconstruction(self, video: Tensor) -> tuple[Tensor, Posterior]:
        """A clip as it comes back, float32, and its posterior."""
        posterior = self.tokenizer.encode(video)
        return self.tokenizer.decode(posterior.sample(), video.shape[1]).float(), posterior


class PatchCritic(nn.Module):
    """How much patches of videos look like those of clips: convolutions over each frame and its difference to
    the one before. Its forward is its own loss in a relativistic game (R3GAN, arXiv 2501.05441): a judgement
    for each patch, `softplus(D(decoded) - D(clip))`, kept smooth by what noise changes in it (R1 and R2 by
    finite differences: APT, arXiv 2501.08316, section 3.3).
    """

    def __init__(self, seed: int, width: int = 32, penalty: float = 10.0, perturbation: float = 0.05) -> None:
        super().__init__()
        self.penalty, self.perturbation = penalty, perturbation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Conv2d(6, width, 4, 2, 1),
                nn.SiLU(),
                nn.Conv2d(width, 2 * width, 4, 2, 1),
                nn.SiLU(),
                nn.Conv2d(2 * width, 2 * width, 4, 2, 1),
                nn.SiLU(),
                nn.Conv2d(2 * width, 1, 1),
            )

    def logits(self, video: Tensor) -> Tensor:
        """Judgements `(B, T, h, w)` of `(B, T, 3, H, W)`, an eighth as high and wide."""
        before = torch.cat([video[:, :1], video[:, :-1]], 1)
        found: Tensor = self.net(torch.cat([video, video - before], 2).flatten(0, 1))
        return found[:, 0].unflatten(0, video.shape[:2]).float()

    def forward(self, clips: Tensor, decoded: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss (scalar) and its terms, of clips and what became of them."""
        both = torch.cat([clips, decoded])
        found = self.logits(both)
        changed = self.logits(both + self.perturbation * torch.randn_like(both)) - found
        lead = found[: len(clips)] - found[len(clips) :]
        penalty = 2 * changed.square().mean()
        told: dict[str, Tensor | float] = {
            "lead": lead.detach().mean(),
            "right": (lead > 0).float().mean(),
            "penalty": penalty.detach(),
        }
        return softplus(-lead).mean() + self.penalty * penalty, told


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over all elements; `weight` has one channel."""
    return (value * weight).sum() / (weight.sum() * value.shape[2])
