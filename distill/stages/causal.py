"""Stage 2: the causal diffusion transformer by flow matching on latents of the frozen tokenizer."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import require
from ..families import DiffusionRun, NetworkSpec
from ..flow import FlowBatch, FlowMatching
from ..optim import ParameterGroups
from ..trainer import Tick
from ..windows import WindowConfig, image_batch, turning_batch, window_batch
from .diffusion import DiffusionStage, optimizer_groups

# Of the windows and the noise that `evaluate` always uses; their clips are training clips.
_FIXED_SEED = 77


@dataclass(frozen=True)
class DataConfig:
    """Batches of one process: `video_batch` windows, or on `image_share` of the updates `image_batch` first
    frames, on `start_share` of them `start_batch` beginnings of `start_frames` latent frames, on `turn_share`
    of them `turn_batch` windows that end soon after a change or the start of a drag or camera move.

    Beginnings and turnings are where words or tracks alone decide which way things go; in long windows the
    neighbours tell. The first `image_phase` of the budget sees first frames alone. `held_out` is the number
    of windows that `evaluate` measures the loss on. Despite its name nothing is held out: they are cut from
    the training clips, at fixed places and with fixed noise, so their loss compares steps and runs and says
    nothing about clips that were never seen.
    """

    video_batch: int = 16
    image_batch: int = 128
    image_phase: float = 0.08
    image_share: float = 0.15
    start_batch: int = 40
    start_frames: int = 3
    start_share: float = 0.25
    turn_batch: int = 15
    turn_share: float = 0.25
    held_out: int = 512

    def __post_init__(self) -> None:
        require(self.start_frames >= 2, "data.start_frames", ">= 2", self.start_frames)
        require(self.held_out >= 1, "data.held_out", ">= 1", self.held_out)
        require(
            self.image_share + self.start_share + self.turn_share <= 1,
            "data shares",
            "a sum <= 1",
            (self.image_share, self.start_share, self.turn_share),
        )


@dataclass(frozen=True)
class CausalRun(DiffusionRun):
    """Config of the causal stage."""

    data: DataConfig = field(default_factory=DataConfig)


class WindowStage(DiffusionStage):
    """A stage that trains on the causal stage's mixture of windows."""

    def __init__(self, config: CausalRun, device: torch.device) -> None:
        for name, frames in (
            ("windows.frames", config.windows.frames),
            ("windows.turning_frames", config.windows.turning_frames),
        ):
            require(frames <= config.plan.attention_frames, name, "<= plan.attention_frames", frames)
        super().__init__(config, device)
        self.config = config

    def draw(self, tick: Tick) -> FlowBatch:
        """First frames in the first part of the budget, then first frames, beginnings, turnings and windows.

        By turns: the kind is a function of the step, so it is alike on all processes.
        """
        data, windows, plan = self.config.data, self.config.windows, self.config.plan
        clips, images, turns = self.latents.of(tick.step)
        generator = torch.Generator().manual_seed(tick.generator_seed("windows"))
        # multiples of the golden ratio spread the kinds evenly over the steps
        turn = (tick.step * 0.6180339887) % 1
        if tick.progress < data.image_phase or turn < data.image_share:
            batch = image_batch(images, data.image_batch, windows, generator)
        elif turn < data.image_share + data.start_share:
            windows = beginnings(windows, data.start_frames)
            batch = window_batch(clips, data.start_batch, windows, generator, plan)
        elif turns and turn < data.image_share + data.start_share + data.turn_share:
            batch = turning_batch(clips, data.turn_batch, silent(windows), generator)
        else:
            batch = window_batch(clips, data.video_batch, windows, generator, plan)
        return batch.to(self.device)


class CausalStage(WindowStage):
    """Trains a `CausalDiT` with its text and motion encoders (a `distill.trainer.Stage`)."""

    keeps_words = True

    def __init__(self, config: CausalRun, device: torch.device) -> None:
        super().__init__(config, device)
        self.module: FlowMatching = self.build(self.specs(config)["causal"])
        self.network = self.module
        self.load_clips()

    @classmethod
    def specs(cls, config: CausalRun) -> dict[str, NetworkSpec[Any]]:
        """DiT and encoders with their loss."""
        return {"causal": NetworkSpec(FlowMatching, config.init)}

    def modules(self) -> dict[str, nn.Module]:
        """DiT and encoders with their loss."""
        return {"causal": self.module}

    def optimizer_groups(self) -> dict[str, ParameterGroups]:
        """Hidden matrices apart from embeddings, modulations and outputs."""
        return {"causal": optimizer_groups(self.module)}

    def target(self, step: int) -> str:
        """Always the one module."""
        return "causal"

    def batch(self, tick: Tick) -> FlowBatch:
        """A batch of the mixture, see `draw`, and captions for the heads."""
        return replace(self.draw(tick), told=self.told(tick))

    def loss(self, module: nn.Module, batch: FlowBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Flow-matching loss of a batch, and the heads' on its captions."""
        result: tuple[Tensor, dict[str, Tensor | float]] = module(batch)
        return result

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Loss on fixed windows of the training clips with fixed noise, and contact sheets of fixed
        streams.
        """
        totals: dict[str, float] = {}
        size = min(64, self.config.data.held_out)
        rounds = self.config.data.held_out // size
        for i in range(rounds):
            generator = torch.Generator().manual_seed(_FIXED_SEED + i)
            batch = window_batch(self.clips, size, self.config.windows, generator, self.config.plan)
            loss, metrics = self.module(batch.to(self.device))
            for key, value in {"loss": loss, **metrics}.items():
                totals[key] = totals.get(key, 0.0) + float(value) / rounds
        self.preview(out_dir)
        return totals


def beginnings(windows: WindowConfig, frames: int) -> WindowConfig:
    """Windows that are the first `frames` latent frames of a clip behind one or two clean ones."""
    return replace(
        windows,
        frames=frames,
        min_gap_prefix=1,
        gap_share=0.0,
        forcing_share=0.0,
        short_prefix_share=1.0,
        no_motion=silent(windows).no_motion,
    )


def silent(windows: WindowConfig) -> WindowConfig:
    """Windows mostly without tracks (but for drags): they would give away what the words have to tell."""
    return replace(windows, no_motion=max(windows.no_motion, 0.8))
