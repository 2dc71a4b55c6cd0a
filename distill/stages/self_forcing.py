"""Self Forcing (arXiv 2506.08009): the student learns on its own streams, by distribution matching.

Streams are rolled out as at inference, with sink, window, switches and recache, each chunk behind what the
student itself has committed. A guided bidirectional teacher is the real score, a critic that learns the
student's own distribution the fake one. Past `long_from` of the budget streams go on over many updates
(streaming long tuning, LongLive, arXiv 2509.22622), so that the student meets its own drift.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.context import ChunkPlan
from models.kv_cache import KVCache
from models.motion_encoder import Tracks
from streamgen.rollout import RolloutState, Sampling
from streamgen.scheduler import FlowMatchScheduler, x0_from_velocity

from ..config import require
from ..families import DiffusionRun, NetworkSpec
from ..flow import Condition, FlowMatching, FlowNetwork, guided
from ..guidance import GuidanceRange, strengths_over
from ..objectives import DistributionMatching, DMDConfig, Objective, Scores, Window
from ..optim import ParameterGroups
from ..running import RolloutStudent, RunningStreams, Script, ScriptConfig, draw_script, prompt_script
from ..trainer import Tick
from .diffusion import DiffusionStage, optimizer_groups


@dataclass(frozen=True)
class RolloutConfig:
    """How streams are rolled out and scored, in latent frames.

    `batch` streams per process; an update generates `fresh_frames` (a stream's first update `window_frames`)
    and scores the last `window_frames`. Streams end after `window_frames`, and past `long_from` of the budget
    after `max_frames`. The student takes up to `steps` steps at `shift`, re-noising in between, of which one
    drawn per update is the last; chunks are committed at noise level `context_noise`.
    """

    batch: int = 12
    window_frames: int = 9
    fresh_frames: int = 6
    max_frames: int = 33
    long_from: float = 0.3
    steps: int = 4
    shift: float = 3.0
    context_noise: float = 0.05

    def __post_init__(self) -> None:
        require(
            1 <= self.fresh_frames <= self.window_frames <= self.max_frames,
            "rollout",
            "fresh_frames <= window_frames <= max_frames",
            (self.fresh_frames, self.window_frames, self.max_frames),
        )
        require(0 <= self.long_from <= 1, "rollout.long_from", "within [0, 1]", self.long_from)
        require(0 <= self.context_noise < 1, "rollout.context_noise", "within [0, 1)", self.context_noise)
        FlowMatchScheduler(self.steps, self.shift)


@dataclass(frozen=True)
class CriticConfig:
    """`updates` of the critic for each of the student, `warmup` before the first one; its learning rates are
    `lr_scale` times the student's.
    """

    updates: int = 4
    warmup: int = 40
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.updates >= 1, "critic.updates", ">= 1", self.updates)
        require(self.warmup >= 0, "critic.warmup", ">= 0", self.warmup)


@dataclass(frozen=True)
class SelfForcingRun(DiffusionRun):
    """Config of the self_forcing stage: `init` is the student's start, `teacher` the real score and the
    critic's start. Captions and tracks come from the clips; or captions alone from `prompts`, a file as
    `streamgen render` takes it, and then no clips are needed.
    """

    teacher: str = "runs/tiny/teacher/export"
    prompts: str | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    script: ScriptConfig = field(default_factory=ScriptConfig)
    guidance: GuidanceRange = field(default_factory=GuidanceRange)
    objective: DMDConfig = field(default_factory=DMDConfig)

    @property
    def needs_clips(self) -> bool:
        """Prompts alone are enough."""
        return self.prompts is None


class Critic(FlowNetwork):
    """The fake score: velocity of noisy windows of the student's streams, which it is trained on."""

    def forward(
        self, x: Tensor, sigma: Tensor, words: Tensor, segment: Tensor, tracks: Tracks, strengths: Tensor
    ) -> Tensor:
        """Velocity of `x (B, T, C, h, w)` at one level `sigma (B,)` per window, under its conditioning."""
        motion = self.motion(tracks, (x.shape[3], x.shape[4]))
        levels = sigma[:, None].expand(x.shape[:2])
        return self.velocity(x, levels, self.text(words, segment), motion, strengths)


@dataclass(frozen=True)
class RolloutBatch:
    """What an update draws: a script for streams that begin with it, how many latent frames a stream may
    have, the exit step, the streams' seed, and the seed of the objective's noise.
    """

    script: Script
    limit: int
    exit_step: int
    seed: int
    objective_seed: int


class SelfForcingStage(DiffusionStage):
    """Trains a few-step student and its critic (a `distill.trainer.Stage`)."""

    def __init__(self, config: SelfForcingRun, device: torch.device) -> None:
        super().__init__(config, device)
        self.config = config
        require(config.init is not None, "init", "a checkpoint of the init stage", None)
        _check_chunks(config)
        plan = self.family.plan_of(Path(config.teacher))
        if plan is not None:
            require(
                config.rollout.window_frames <= plan.chunk_frames,
                "rollout.window_frames",
                f"<= the teacher's {plan.chunk_frames} latent frames",
                config.rollout.window_frames,
            )
        specs = self.specs(config)
        self.student: RolloutStudent = self.build(specs["student"])
        self.network = self.student
        self.teacher: FlowMatching = self.build(specs["teacher"])
        self.critic: Critic = self.build(specs["critic"])
        self.objective: Objective = DistributionMatching(config.objective)
        self.streams: RunningStreams | None = None
        self.prompts = None if config.prompts is None else self.family.prompts(config.prompts)
        if self.prompts is None:
            self.load_clips()

    @classmethod
    def specs(cls, config: SelfForcingRun) -> dict[str, NetworkSpec[Any]]:
        """The student that streams, and the two scores of whole windows: the guided teacher and the critic,
        which starts from it.
        """
        frames = config.rollout.window_frames
        whole = ChunkPlan(frames, frames, 0, 0)
        return {
            "student": NetworkSpec(RolloutStudent, config.init, guidance=True),
            "critic": NetworkSpec(Critic, config.teacher, guidance=True, plan=whole),
            "teacher": NetworkSpec(FlowMatching, config.teacher, plan=whole, frozen=True),
        }

    def modules(self) -> dict[str, nn.Module]:
        """Student and critic."""
        return {"student": self.student, "critic": self.critic}

    def frozen(self) -> dict[str, nn.Module]:
        """Networks that are never trained."""
        return {"teacher": self.teacher}

    def optimizer_groups(self) -> dict[str, ParameterGroups]:
        """Hidden matrices apart from embeddings, modulations and outputs."""
        critic, scale = optimizer_groups(self.critic), self.config.critic.lr_scale
        scaled = ParameterGroups(critic.matrices, critic.others, scale, scale)
        return {"student": optimizer_groups(self.student), "critic": scaled}

    def target(self, step: int) -> str:
        """The critic in its warm-up, later one update of the student behind each `updates` of the critic."""
        critic = self.config.critic
        after = step - critic.warmup
        return "student" if after >= 0 and after % (critic.updates + 1) == critic.updates else "critic"

    def state(self) -> dict[str, Any]:
        """The running streams of this process."""
        return {"streams": None if self.streams is None else self.streams.save()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over saved streams."""
        saved = state["streams"]
        if saved is None:
            self.streams = None
            return
        cache = self._new_cache(len(saved["words"]))
        self.streams = RunningStreams.load(saved, cache)

    def batch(self, tick: Tick) -> RolloutBatch:
        """A script and draws; the exit step is alike on all processes, so that they do the same work.

        Switches are, too, where processes gather each other's parameters: a recache is a forward of its own.
        """
        rollout = self.config.rollout
        generator = torch.Generator().manual_seed(tick.generator_seed("script"))
        timing = torch.Generator().manual_seed(tick.generator_seed("switch", shared=True))
        sharded = self.run.parallel == "fsdp2"
        script = self.script(generator, timing if sharded else None).to(self.device)
        shared = torch.Generator().manual_seed(tick.generator_seed("exit", shared=True))
        exit_step = int(torch.randint(rollout.steps, (), generator=shared))
        limit = rollout.window_frames if tick.progress < rollout.long_from else rollout.max_frames
        return RolloutBatch(
            script, limit, exit_step, tick.generator_seed("streams"), tick.generator_seed("objective")
        )

    def script(self, generator: torch.Generator, shared: torch.Generator | None = None) -> Script:
        """A script for new streams; its switch is drawn from `shared` where that is given."""
        config = self.config
        if self.prompts is not None:
            size, plan = config.rollout.batch, config.plan
            return prompt_script(self.prompts, size, plan, config.script, config.guidance, generator, shared)
        return draw_script(
            self.clips,
            config.rollout.batch,
            config.plan,
            config.script,
            config.windows,
            config.guidance,
            generator,
            shared,
        )

    def loss(self, module: nn.Module, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Carry the streams on and score them: through `module`, the student, or for it, the critic."""
        generator = torch.Generator().manual_seed(batch.objective_seed)
        network = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
        if network is self.student:
            window, streams, start = self.roll(module, batch, with_gradient=True)
            return self.objective.student_loss(window, self.scores(streams, start, window), generator)
        with torch.no_grad():
            window, streams, start = self.roll(self.student, batch, with_gradient=False)
        told = self._told(streams.script, start, window.x.shape[1])
        return self.objective.critic_loss(window, lambda x, sigma: module(x, sigma, *told), generator)

    def roll(
        self, student: nn.Module, batch: RolloutBatch, with_gradient: bool
    ) -> tuple[Window, RunningStreams, int]:
        """The streams' next window, the streams, and the latent frame at which the window begins."""
        options = self.config.rollout
        streams = self.streams
        if streams is None or streams.frames + options.fresh_frames > batch.limit:
            cache = self._new_cache(options.batch)
            streams = RunningStreams(batch.script, RolloutState(cache), batch.seed)
        # an update that fails must not leave half a window behind
        self.streams = None
        before = streams.recent(options.window_frames - options.fresh_frames)
        sampling = Sampling(
            FlowMatchScheduler(options.steps, options.shift).sigmas(),
            renoise=True,
            context_sigma=options.context_noise,
            exit_step=batch.exit_step,
            with_gradient=with_gradient,
        )
        wanted = options.window_frames if before is None else options.fresh_frames
        fresh: Tensor = student(streams, wanted, sampling)
        self.streams = streams
        x = fresh if before is None else torch.cat([before, fresh], 1)
        is_fresh = torch.arange(x.shape[1], device=x.device) >= x.shape[1] - fresh.shape[1]
        return Window(x, is_fresh), streams, streams.frames - x.shape[1]

    def scores(self, streams: RunningStreams, start: int, window: Window) -> Scores:
        """The teacher under joint guidance and the critic, at the window's own captions and tracks."""
        words, segment, tracks, strengths = self._told(streams.script, start, window.x.shape[1])
        teacher = self.teacher
        grid = (window.x.shape[3], window.x.shape[4])
        condition = Condition(teacher.text(words, segment), teacher.motion(tracks, grid), strengths)

        def real(x: Tensor, sigma: Tensor) -> Tensor:
            levels = sigma[:, None].expand(x.shape[:2])
            return x0_from_velocity(x, guided(teacher, x, levels, condition), levels)

        def fake(x: Tensor, sigma: Tensor) -> Tensor:
            levels = sigma[:, None].expand(x.shape[:2])
            return x0_from_velocity(x, self.critic(x, sigma, words, segment, tracks, strengths), levels)

        return Scores(real, fake)

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Contact sheets of fixed streams as the student streams them."""
        self.preview(out_dir)
        return {}

    def _told(self, script: Script, start: int, count: int) -> tuple[Tensor, Tensor, Tracks, Tensor]:
        tracks = script.tracks_of(start, count)
        strengths = strengths_over(script.strengths, tracks.state, self.student.plan, start)
        return script.words, script.segment(start, count), tracks, strengths

    def _new_cache(self, batch: int) -> KVCache:
        return self.student.new_cache(batch, self.family.grid, self.family.cache_dtype)


def _check_chunks(config: SelfForcingRun) -> None:
    """Updates have to end where chunks do, and what a window shows of the past must still be at hand."""
    rollout, plan = config.rollout, config.plan
    for name, frames, first in (
        ("window_frames", rollout.window_frames, plan.first_chunk_frames),
        ("fresh_frames", rollout.fresh_frames, 0),
    ):
        require(
            (frames - first) % plan.chunk_frames == 0,
            f"rollout.{name}",
            f"{first} plus whole chunks of {plan.chunk_frames} latent frames",
            frames,
        )
    past = rollout.window_frames - rollout.fresh_frames
    require(
        past <= plan.window_frames,
        "rollout.window_frames - rollout.fresh_frames",
        f"<= plan.window_frames ({plan.window_frames})",
        past,
    )
