"""Stage 2: the causal diffusion transformer by flow matching on latents of the frozen tokenizer."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import moved
from ..config import Count, require
from ..evaluation.intervals import Figure
from ..families import DiffusionRun, NetworkSpec, TinyFamily
from ..flow import FlowBatch, FlowMatching
from ..mixture import Census, MixtureConfig
from ..scenes import MOTIONS
from ..stage import Tick
from ..turning_probe import TurningGate, check_turning, gated, plot_turning, probe_clips, turning_errors
from ..windows import WindowConfig, beginnings, changes, flow_batch, image_batch, whole_clips
from .diffusion import DiffusionStage

# Of the windows and the noise that `evaluate` always uses; their clips are training clips.
_FIXED_SEED = 77
_FIXED_BATCH = 8


@dataclass(frozen=True)
class WindowRun(DiffusionRun):
    """Config of a stage on the causal stage's windows: what its updates are made of."""

    mixture: MixtureConfig = field(default_factory=MixtureConfig)


@dataclass(frozen=True)
class CausalRun(WindowRun):
    """Config of the causal stage, with the probe of turning paths it is to pass (of the world alone).
    `fixed_windows` is the number of windows that `evaluate` measures the loss on: cut from the training
    clips, at fixed places and with fixed noise, so it compares steps and runs and says nothing about clips
    that were never seen.
    """

    turning: TurningGate = field(default_factory=TurningGate)
    fixed_windows: Count = 64


class WindowStage(DiffusionStage):
    """A stage that trains on the causal stage's mixture of windows."""

    config: WindowRun

    def __init__(self, config: WindowRun, device: torch.device) -> None:
        require(
            config.plan.chunk_frames == 1 or config.mixture.changes.share == 0,
            "mixture.changes.share",
            f"0 with chunks of {config.plan.chunk_frames} latent frames",
            config.mixture.changes.share,
        )
        super().__init__(config, device)
        self.config = config
        self.census = Census([*config.mixture.kinds, *MOTIONS, "targets", "turning"])

    def draw(self, tick: Tick) -> FlowBatch:
        """A batch of the kind whose turn it is, which is alike on all processes."""
        config, windows, plan = self.config, self.windows, self.config.plan
        clips, images, has_changes = self.latents.of(tick.step)
        kind = config.mixture.kind(tick.step, tick.progress, has_changes)
        size = config.mixture.kinds[kind].batch
        generator = torch.Generator().manual_seed(tick.generator_seed("windows"))
        if kind == "images":
            batch = image_batch(images, size, windows, generator)
        else:
            make = {"beginnings": beginnings, "clips": whole_clips, "changes": changes}[kind]
            layout = make(clips, size, windows, generator, plan)
            silence = windows.silence if kind == "clips" else windows.quiet
            batch = flow_batch(clips, layout, windows, silence, generator, plan)
        counts = {**batch.counts, kind: batch.counts["targets"]}
        return replace(batch, counts=counts)

    @property
    def windows(self) -> WindowConfig:
        """How windows are made."""
        return self.config.windows

    def counted(self, batch: FlowBatch) -> dict[str, float]:
        """Count the targets of a batch; the shares of all since this process began, for the log."""
        self.census.add(batch.counts)
        kinds, motions = self.census.shares(list(self.config.mixture.kinds)), self.census.shares(MOTIONS)
        turning = self.census.count("turning") / max(1, self.census.count("targets"))
        seen = kinds | motions | {"turning": turning, "targets": self.census.count("targets")}
        return {f"seen/{name.replace(' ', '_')}": value for name, value in seen.items()}


class CausalStage(WindowStage):
    """Trains a `CausalDiT` with its text and motion encoders."""

    keeps_words = True
    config: CausalRun

    def __init__(self, config: CausalRun, device: torch.device) -> None:
        super().__init__(config, device)
        self.module: FlowMatching = self.build("causal", self.specs(config)["causal"])
        self.network = self.module
        self.load_clips()

    @classmethod
    def specs(cls, config: CausalRun) -> dict[str, NetworkSpec[Any]]:
        """DiT and encoders with their loss."""
        return {"causal": NetworkSpec(FlowMatching, config.init)}

    def batch(self, tick: Tick) -> FlowBatch:
        """A batch of the mixture, see `draw`, and captions for the heads."""
        return replace(self.draw(tick), told=self.told(tick))

    def loss(self, module: nn.Module, batch: FlowBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Flow-matching loss of a batch, and the heads' on its captions."""
        loss, metrics = module(batch)
        return loss, metrics | self.counted(batch)

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Loss on fixed windows of the training clips with fixed noise, errors of the turning probe, and
        contact sheets of fixed streams.
        """
        totals = self._fixed_loss()
        found = self.turning_errors()
        if found:
            plot_turning(found, out_dir / "turning.png")
            totals |= {f"probe/{n.replace(' ', '_')}": f.value for n, f in gated(found).items() if f.value}
        self.preview(out_dir)
        return totals

    def check(self) -> list[str]:
        """See `Stage`: what binding and turning probes found, and what was seen."""
        kinds, motions = self.census.shares(list(self.config.mixture.kinds)), self.census.shares(MOTIONS)
        parts = (("kind", kinds), ("motion", motions))
        seen = [
            f"targets by {what}: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
            for what, shares in parts
        ]
        seen.append(f"targets: {self.census.count('targets')}, turning: {self.census.count('turning')}")
        return [*super().check(), *seen, *check_turning(self.turning_errors(), self.config.turning)]

    def turning_errors(self) -> dict[str, Figure]:
        """Errors of the turning probe with the weights of now; none of a model of own clips alone."""
        family, run = self.family, self.run
        if not isinstance(family, TinyFamily) or (run.clips is not None and run.clips.share == 1):
            return {}
        clips = probe_clips(self.config.turning, run.cache, run.scenes, family.cache)
        return turning_errors(self.module, clips, self.config.windows)

    @torch.no_grad()
    def _fixed_loss(self) -> dict[str, float]:
        config, plan = self.config, self.config.plan
        totals: dict[str, float] = {}
        size = min(_FIXED_BATCH, config.fixed_windows)
        rounds = config.fixed_windows // size
        for i in range(rounds):
            generator = torch.Generator().manual_seed(_FIXED_SEED + i)
            layout = whole_clips(self.clips, size, config.windows, generator, plan)
            silence = config.windows.silence
            batch = flow_batch(self.clips, layout, config.windows, silence, generator, plan)
            loss, metrics = self.module(moved(batch, self.device))
            for key, value in {"loss": loss, **metrics}.items():
                totals[key] = totals.get(key, 0.0) + float(value) / rounds
        return totals
