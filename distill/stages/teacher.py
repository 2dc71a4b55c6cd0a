"""The bidirectional teacher: flow matching on windows cut anywhere, every latent frame seeing all others.

It is what distillation measures a student's streams by. Its checkpoint has a chunk plan of one long chunk
without sink and window, so that everything that opens a checkpoint can sample the first seconds from it.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..batches import moved
from ..clips.training import clip_frames
from ..config import Checked, Count, Share, require
from ..families import DiffusionRun, NetworkSpec
from ..flow import FlowBatch, FlowMatching
from ..mixture import Turns
from ..stage import Tick
from ..windows import image_batch, teacher_batch
from .diffusion import DiffusionStage

_FIXED_SEED = 78


@dataclass(frozen=True)
class TeacherData(Checked, section="data"):
    """Batches of one process: `video_batch` windows as long as the plan's chunk; on `short_share` of the
    updates `short_batch` windows of `short_frames`, on `image_share` of them `image_batch` first frames, and
    in the first `image_phase` of the budget those alone.

    `start_share` of all windows begin at frame 0. Of the windows, `silent_share` are mostly without tracks,
    which would give away what the words have to tell. Tracks fall silent in mid-window only in the last part
    of the budget, from `mask_from` on (MotionStream, arXiv 2511.01266).
    """

    video_batch: Count = 7
    short_batch: Count = 13
    short_frames: Count = 9
    short_share: Share = 0.3
    image_batch: Count = 64
    image_phase: Share = 0.0
    image_share: Share = 0.15
    start_share: Share = 0.4
    silent_share: Share = 0.5
    mask_from: Share = 0.5
    held_out: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.short_share + self.image_share <= 1,
            "data shares",
            "a sum <= 1",
            (self.short_share, self.image_share),
        )

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the updates by kind."""
        whole = 1 - self.image_share - self.short_share
        return {"images": self.image_share, "short": self.short_share, "whole": whole}


@dataclass(frozen=True)
class TeacherRun(DiffusionRun):
    """Config of the teacher stage; `plan` is one chunk, `{chunk_frames: T, first_chunk_frames: T,
    sink_frames: 0, window_frames: 0}`.
    """

    data: TeacherData = field(default_factory=TeacherData)


class TeacherStage(DiffusionStage):
    """Trains the bidirectional teacher."""

    keeps_words = True

    def __init__(self, config: TeacherRun, device: torch.device) -> None:
        plan = config.plan
        latent_frames = (clip_frames(config.clips, config.cache.frames) - 1) // 4 + 1
        require(
            plan.first_chunk_frames == plan.chunk_frames and plan.context_frames == 0,
            "plan",
            "one chunk (first_chunk_frames = chunk_frames) without sink and window",
            plan,
        )
        for name, frames in (
            ("plan.chunk_frames", plan.chunk_frames),
            ("data.short_frames", config.data.short_frames),
        ):
            require(frames <= latent_frames, name, f"<= the clips' {latent_frames} latent frames", frames)
        super().__init__(config, device)
        self.config = config
        self.module: FlowMatching = self.build("teacher", self.specs(config)["teacher"])
        self.network = self.module
        self.load_clips()

    @classmethod
    def specs(cls, config: TeacherRun) -> dict[str, NetworkSpec[Any]]:
        """DiT and encoders with their loss."""
        return {"teacher": NetworkSpec(FlowMatching, config.init)}

    def batch(self, tick: Tick) -> FlowBatch:
        """A batch of the mixture, see `draw`, and captions for the heads."""
        return replace(self.draw(tick), told=self.told(tick))

    def draw(self, tick: Tick) -> FlowBatch:
        """Windows of two lengths and first frames by turns; the same kind on every process."""
        data = self.config.data
        windows = self.config.windows
        clips, images, _ = self.latents.of(tick.step)
        generator = torch.Generator().manual_seed(tick.generator_seed("windows"))
        if tick.progress < data.mask_from:
            windows = replace(windows, motion_mask=0.0)
        kind = "images" if tick.progress < data.image_phase else Turns(data.shares).at(tick.step)
        if kind == "images":
            return image_batch(images, data.image_batch, windows, generator)
        quiet = bool(torch.rand((), generator=generator) < data.silent_share)
        silence = windows.quiet if quiet else windows.silence
        size, frames = (
            (data.short_batch, data.short_frames)
            if kind == "short"
            else (data.video_batch, self.config.plan.chunk_frames)
        )
        return teacher_batch(clips, size, frames, data.start_share, windows, silence, generator)

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Loss on fixed windows of training clips with fixed noise, and a contact sheet of fixed prompts."""
        data, plan = self.config.data, self.config.plan
        generator = torch.Generator().manual_seed(_FIXED_SEED)
        windows, size = self.config.windows, data.held_out
        batch = teacher_batch(
            self.clips, size, plan.chunk_frames, data.start_share, windows, windows.silence, generator
        )
        loss, metrics = self.module(moved(batch, self.device))
        self.preview(out_dir, streams=False)
        return {key: float(value) for key, value in {"loss": loss, **metrics}.items()}
