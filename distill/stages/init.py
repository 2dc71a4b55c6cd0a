"""Causal initialisation: a few-step student from the guided autoregressive teacher, before Self Forcing.

Both methods train on clean context (teacher forcing), as a stream has it, and need no stored pairs:

- `consistency`: causal consistency distillation (Consistency Models, arXiv 2303.01469; causal as in
  Causal-Forcing, https://github.com/thu-ml/Causal-Forcing). The teacher takes one guided step down, and the
  student's clean estimate from above is drawn to the one its own moving average makes from below.
- `ode`: causal ODE regression (CausVid, arXiv 2412.07772, with clean context). The teacher solves each chunk
  from noise, and the student learns to name the end from the levels it will visit. With `scoring: windows`
  the teacher is bidirectional and solves whole windows, as CausVid's does; the student's past is what came
  out of them. Causal-Forcing holds that this cannot be learned: what a frame becomes depends on later noise.
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.context import ChunkPlan
from streamgen.engine.scheduler import FlowMatchScheduler, add_noise, x0_from_velocity

from ..config import Checked, Count, Decay, Positive, Several, require
from ..families import NetworkSpec
from ..flow import Condition, FlowBatch, FlowMatching, FlowNetwork, Past, focused, guided
from ..guidance import GuidanceRange, strengths_over
from ..stage import Tick
from ..windows import WindowConfig, chunk_starts
from .causal import WindowRun, WindowStage
from .scorers import Scoring


@dataclass(frozen=True)
class InitConfig(Checked, section="distillation"):
    """`method` as in the module's head. `steps` levels of the consistency grid, or solver steps of the
    regression; `student_steps` the steps the student will stream with, at the same `shift`; `target_decay`
    of the moving average that makes consistency targets.
    """

    method: Literal["consistency", "ode"] = "consistency"
    steps: Several = 32
    student_steps: Count = 4
    shift: Positive = 3.0
    target_decay: Decay = 0.95
    guidance: GuidanceRange = field(default_factory=GuidanceRange)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.steps % self.student_steps == 0,
            "distillation.steps",
            f"a multiple of student_steps ({self.student_steps})",
            self.steps,
        )


@dataclass(frozen=True)
class InitRun(WindowRun):
    """Config of the init stage; `teacher` is the checkpoint of the causal stage, also the usual `init`; for
    `scoring` of whole windows it is that of the teacher stage.
    """

    teacher: str = "runs/tiny/causal/export"
    scoring: Scoring = "chunks"
    distillation: InitConfig = field(default_factory=InitConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scoring == "windows":
            for name, expected, found in (
                ("distillation.method", "ode", self.distillation.method),
                ("mixture.changes.share", 0, self.mixture.changes.share),
                ("windows.gap_share", 0, self.windows.gap_share),
                ("windows.copies", 1, self.windows.copies),
            ):
                require(found == expected, name, f"{expected} where whole windows are solved", found)


@dataclass(frozen=True)
class InitBatch:
    """`windows`, guidance `strengths (B, 2)` and the index `levels (B, T)` of each target's noise, from 1
    (next to clean) to `steps` (noise); `first` of an update's micro-batches.
    """

    windows: FlowBatch
    strengths: Tensor
    levels: Tensor
    first: bool


@dataclass(frozen=True)
class StudentBatch:
    """What the student sees and should answer: noisy frames `x (B, T, C, h, w)` at `sigma (B, T)`, and the
    clean frames `target` it is to name. `windows` has their past, captions, tracks and weights, `strengths
    (B, 2)` are the guidance it answers for.
    """

    windows: FlowBatch
    strengths: Tensor
    x: Tensor
    sigma: Tensor
    target: Tensor


class FewStepStudent(FlowNetwork):
    """The student with its regression loss in forward, which is what data parallelism wraps."""

    def forward(self, batch: StudentBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Weighted pseudo-Huber distance of clean estimates (arXiv 2310.14189), and the plain mean square."""
        clean = self.estimate(batch.windows, batch.strengths, batch.x, batch.sigma)
        squares = (clean - batch.target).square()
        mean_square = focused(squares.mean(2), batch.windows.focus)
        small = 0.03
        huber = focused((squares + small**2).sqrt().sub(small).mean(2), batch.windows.focus)
        weight = batch.windows.weight
        total = weight.sum().clamp_min(1e-6)
        metrics: dict[str, Tensor | float] = {"mse": (mean_square.detach() * weight).sum() / total}
        added, told = self.told_loss(batch.windows.told)
        return (huber * weight).sum() / total + added, metrics | told

    def estimate(self, windows: FlowBatch, strengths: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Clean frames as the student sees them through noise, `(B, T, C, h, w)`."""
        condition, past = condition_of(self, windows, strengths)
        velocity = self.velocity(x, sigma, condition.text, condition.motion, condition.strengths, past)
        return x0_from_velocity(x, velocity, sigma)


class InitStage(WindowStage):
    """Trains a few-step student on clean context."""

    keeps_words = True

    def __init__(self, config: InitRun, device: torch.device) -> None:
        require(
            config.lora is None, "lora", "null in this stage, whose target follows all weights", config.lora
        )
        super().__init__(config, device)
        self.options, self.scoring = config.distillation, config.scoring
        self._check_teacher(config)
        specs = self.specs(config)
        self.teacher: FlowMatching = self.build("teacher", specs["teacher"])
        self.student: FewStepStudent = self.build("student", specs["student"])
        self.network = self.student
        # the moving average that consistency targets come from; the trainer's own is much slower
        self.average = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.load_clips()

    @classmethod
    def specs(cls, config: InitRun) -> dict[str, NetworkSpec[Any]]:
        """The student with its loss, the guided teacher, and the student's moving average."""
        student: NetworkSpec[Any] = NetworkSpec(FewStepStudent, config.init, guidance=True)
        whole = None
        if config.scoring == "windows":
            frames = config.windows.frames or 1
            whole = ChunkPlan(frames, frames, 0, 0)
        teacher: NetworkSpec[Any] = NetworkSpec(
            FlowMatching, config.teacher, plan=whole, frozen=True, sizes="teacher"
        )
        return {"student": student, "teacher": teacher, "average": replace(student, frozen=True)}

    def _check_teacher(self, config: InitRun) -> None:
        """The teacher has to be of the kind that `scoring` asks for, as far as its checkpoint says."""
        plan = self.family.plan_of(Path(config.teacher))
        if plan is None:
            return
        bidirectional = plan.context_frames == 0 and plan.chunk_frames > config.plan.chunk_frames
        wanted = f"a {'bidirectional' if config.scoring == 'windows' else 'causal'} one"
        require(bidirectional == (config.scoring == "windows"), "teacher", wanted, f"a chunk plan of {plan}")
        if bidirectional:
            frames = config.windows.frames
            most = plan.chunk_frames
            require(frames is not None and frames <= most, "windows.frames", f"1 to {most}", frames)

    def frozen(self) -> dict[str, nn.Module]:
        """Networks that are never trained."""
        return {"teacher": self.teacher, "average": self.average}

    @property
    def windows(self) -> WindowConfig:
        """The causal stage's, but nothing is dropped: guidance is an input here, and no branch of it."""
        return replace(self.config.windows, text_drop=0.0, target_text_drop=0.0, target_motion_drop=0.0)

    def state(self) -> dict[str, Any]:
        """The moving average."""
        return {"average": self.average.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a saved moving average."""
        self.average.load_state_dict(state["average"])

    def batch(self, tick: Tick) -> InitBatch:
        """Windows of the causal stage's mixture with strengths and levels."""
        windows = replace(self.draw(tick), told=self.told(tick))
        generator = torch.Generator().manual_seed(tick.generator_seed("levels"))
        strengths = self.options.guidance.sample(len(windows.x0), generator)
        levels = torch.randint(1, self.options.steps + 1, windows.sigma.shape, generator=generator)
        levels = levels[:, chunk_starts(self.config.plan, levels.shape[1])]
        return InitBatch(windows, strengths, levels, tick.micro == 0)

    def loss(self, module: nn.Module, batch: InitBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The student's distance from its target."""
        windows, strengths = batch.windows, batch.strengths
        with torch.no_grad():
            if batch.first:
                self._follow()
            falling = FlowMatchScheduler(self.options.steps, self.options.shift).sigmas()
            sigmas = torch.tensor(falling[::-1], device=self.device)
            condition, past = condition_of(self.teacher, windows, strengths)
            make = _consistency if self.options.method == "consistency" else _regression
            if self.scoring == "windows":
                pair = make(self, batch, condition, None, sigmas)
                windows = replace(windows, x0=pair[2])
            else:
                pair = make(self, batch, condition, past, sigmas)
        loss, metrics = module(StudentBatch(windows, strengths, *pair))
        return loss, metrics | self.counted(windows)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average a step towards the student."""
        own = [p.detach() for p in self.student.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), own, 1.0 - self.options.target_decay)


def _consistency(
    stage: InitStage, batch: InitBatch, condition: Condition, past: Past | None, sigmas: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(noisy frames, their level, target): the average's clean estimate one guided teacher step below."""
    windows = batch.windows
    above, below = sigmas[batch.levels], sigmas[batch.levels - 1]
    x = add_noise(windows.targets, windows.noise, above)
    velocity = guided(stage.teacher, x, above, condition, past)
    lower = x + (below - above)[..., None, None, None] * velocity
    estimate = stage.average.estimate(windows, batch.strengths, lower, below)
    # at level 0 the frames are clean themselves
    return x, above, torch.where((below == 0)[..., None, None, None], lower, estimate)


def _regression(
    stage: InitStage, batch: InitBatch, condition: Condition, past: Past | None, sigmas: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(noisy frames, their level, target): a place on the teacher's way from noise, and its end."""
    windows = batch.windows
    steps, stride = stage.options.steps, stage.options.steps // stage.options.student_steps
    # the student only ever visits every stride-th level
    visited = (batch.levels + stride - 1) // stride * stride
    x, chosen = windows.noise, windows.noise
    for level in range(steps, 0, -1):
        chosen = torch.where((visited == level)[..., None, None, None], x, chosen)
        above = sigmas[level].expand_as(windows.sigma)
        velocity = guided(stage.teacher, x, above, condition, past)
        x = x + (sigmas[level - 1] - sigmas[level]) * velocity
    return chosen, sigmas[visited], x


def condition_of(
    network: FlowNetwork, windows: FlowBatch, strengths: Tensor
) -> tuple[Condition, Past | None]:
    """The conditioning of windows' targets through a network's own encoders, and the past they are behind."""
    motion = network.motion(windows.tracks, (windows.x0.shape[3], windows.x0.shape[4]))
    text = network.text(windows.words, windows.segment)
    over = windows.of_targets(strengths_over(strengths, windows.tracks.state, network.plan))
    return Condition(text, windows.motion_of_targets(motion), over), windows.past(motion)
