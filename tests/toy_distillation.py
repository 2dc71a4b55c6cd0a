"""A tiny stage with a student, a critic, a frozen teacher and a stream that runs on, to test the trainer."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.config import CheckpointConfig, OptimConfig, PreviewConfig, RunConfig
from distill.parallel import end_processes, make_accelerator
from distill.stage import Stage, Tick
from distill.trainer import Trainer

GLOBAL_BATCH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(7, 7), nn.Parameter(torch.ones(1, 7))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x)) * self.gain


class Net(nn.Module):
    """Blocks that are run through twice, odd sizes, and a second way in."""

    entry_points = ("features",)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 7), nn.Linear(7, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.register_buffer("calls", torch.zeros(()))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        out = self.last(self.features(x))
        return out if target is None else (out - target).square().mean()

    def features(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in (*self.blocks, *self.blocks):
            x = block(x)
        return x


class DistillationStage(Stage):
    """The critic learns what the student makes, in two of three updates; the student what the teacher does.

    `pull` makes losses depend on the stream, the sum of all that this process has seen.
    """

    def __init__(self, pull: float = 0.0) -> None:
        self.student, self.critic, self.teacher = Net(1), Net(2), Net(3)
        self.pull, self.stream = pull, torch.zeros(6)

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        return {"student": Net(1), "critic": Net(2)}, {"teacher": Net(3)}

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "critic": self.critic}

    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher}

    def state(self) -> dict[str, Any]:
        return {"stream": self.stream}

    def load_state(self, state: dict[str, Any]) -> None:
        self.stream = state["stream"]

    def target(self, step: int) -> str:
        return "student" if step % 3 == 2 else "critic"

    def batch(self, tick: Tick) -> Tensor:
        generator = torch.Generator().manual_seed(tick.generator_seed("data", shared=True))
        return torch.randn(GLOBAL_BATCH, 6, generator=generator).chunk(tick.world)[tick.rank]

    def loss(self, module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        x = batch + self.pull * self.stream
        self.stream = self.stream + batch.mean(0)
        with torch.no_grad():
            # the critic's own update goes through the student's second way in, then its forward
            target = self.student(x) if inner(module) is self.critic else self.teacher(x)
            extra = self.student.features(x).mean()
        return module(x, target), {"features": extra}

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        assert type(self.student) is Net
        assert type(copy.deepcopy(self.student).first.weight) is nn.Parameter
        return {"score": float(self.student(torch.ones(2, 6)).sum())}

    def export(self, directory: Path) -> None:
        torch.save(self.student.state_dict(), directory / "student.pt")


def inner(module: nn.Module) -> nn.Module:
    """A module out of what data parallelism puts around it."""
    return module if isinstance(module, Net) else module.get_submodule("module")


def distillation_config(run_dir: Path, **changes: Any) -> RunConfig:
    """Six updates; large eps, so that AdamW does not turn rounding into steps."""
    config = RunConfig(
        stage="toy",
        run_dir=str(run_dir),
        max_steps=6,
        seed=3,
        log_every=1,
        trackers=(),
        optim=OptimConfig(matrices="adamw", lr=1e-2, eps=1e-3, warmup_steps=0, decay="none"),
        checkpoint=CheckpointConfig(every_steps=None, every_minutes=None),
        preview=PreviewConfig(every_minutes=None, at_end=False),
    )
    return replace(config, **changes)


def train(config: RunConfig, pull: float = 0.0, resume: str = "latest") -> DistillationStage:
    """Train in this process, or as one of several."""
    stage = DistillationStage(pull)
    accelerator = make_accelerator(config)
    Trainer(config, stage, accelerator).run(resume)
    end_processes(accelerator)
    return stage
