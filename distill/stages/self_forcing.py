"""Self Forcing (arXiv 2506.08009): the student learns on its own streams, by distribution matching.

Streams are rolled out as at inference, with sink, window, switches and recache, each chunk behind what the
student itself has committed. A guided bidirectional teacher is the real score, a critic that learns the
student's own distribution the fake one; with a causal teacher both score every chunk behind the stream's own
past instead (`scoring: chunks`). What is made of the scores is the `objective` (`distill.objectives`). Past
`long_from` of the budget streams go on over many updates (streaming long tuning, LongLive, arXiv 2509.22622),
so that the student meets its own drift.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.context import ChunkPlan
from models.kv_cache import CacheRing
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import FlowMatchScheduler, add_noise
from streamgen.stream.latents import LatentState

from ..config import require
from ..families import DiffusionRun, NetworkSpec
from ..flow import FlowMatching
from ..guidance import GuidanceRange, strengths_over
from ..objectives import OBJECTIVES, DMDConfig, Judged, ObjectiveConfig, Scores, Window
from ..optim import ParameterGroups
from ..running import (
    RolloutStudent,
    RunningStreams,
    Script,
    ScriptConfig,
    draw_script,
    draw_switch,
    prompt_script,
)
from ..scoring import Critic, Told, clip_windows, fake_score, real_score, score_alone, without_gradients
from ..trainer import Tick
from ..words.told import ToldBatch
from .diffusion import DiffusionStage, optimizer_groups


@dataclass(frozen=True)
class RolloutConfig:
    """How streams are rolled out and scored, in latent frames.

    `batch` streams per process; an update generates `fresh_frames` (a stream's first update `window_frames`)
    and scores the last `window_frames`. Streams end after `window_frames`, and past `long_from` of the budget
    after `max_frames`. The student takes up to `steps` steps at `shift`, re-noising in between, of which one
    drawn per update is the last; chunks are committed at noise level `context_noise`. A `first_share` of
    the updates see the first chunk alone, of `first_batch` new streams: it is made of words only, all else
    follows from it, and in windows it is one frame of many. With `context_gradient: self` the loss reaches
    the student through what its streams have committed, too (`distill.context_gradient`).
    """

    batch: int = 12
    window_frames: int = 9
    fresh_frames: int = 6
    max_frames: int = 33
    long_from: float = 0.3
    first_share: float = 0.0
    first_batch: int = 48
    steps: int = 4
    shift: float = 3.0
    context_noise: float = 0.05
    context_gradient: Literal["none", "self"] = "none"

    def __post_init__(self) -> None:
        require(
            1 <= self.fresh_frames <= self.window_frames <= self.max_frames,
            "rollout",
            "fresh_frames <= window_frames <= max_frames",
            (self.fresh_frames, self.window_frames, self.max_frames),
        )
        require(0 <= self.long_from <= 1, "rollout.long_from", "within [0, 1]", self.long_from)
        require(0 <= self.first_share <= 1, "rollout.first_share", "within [0, 1]", self.first_share)
        require(self.first_batch >= 1, "rollout.first_batch", ">= 1", self.first_batch)
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
    critic's start. With `scoring` "windows" both see a window as a whole (the teacher is bidirectional); with
    "chunks" they are causal as the student is, and score each chunk behind what the stream has committed:
    its distribution given the past instead of the joint one. Captions and tracks come from the clips; or
    captions alone from `prompts`, a file as `streamgen render` takes it, and then no clips are needed.
    """

    teacher: str = "runs/tiny/teacher/export"
    scoring: Literal["windows", "chunks"] = "windows"
    prompts: str | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    script: ScriptConfig = field(default_factory=ScriptConfig)
    guidance: GuidanceRange = field(default_factory=GuidanceRange)
    objective: ObjectiveConfig = field(default_factory=DMDConfig)

    @property
    def needs_clips(self) -> bool:
        """Prompts alone are enough."""
        return self.prompts is None


@dataclass(frozen=True)
class RolloutBatch:
    """What an update draws: a script for streams that begin with it, how many latent frames a stream may
    have, the exit step, the streams' seed, and the seed of the objective's noise; `first` where new streams
    are to show their first chunk alone; captions that the student's text encoder is `told`.
    """

    script: Script
    limit: int
    exit_step: int
    seed: int
    objective_seed: int
    first: bool = False
    told: ToldBatch | None = None


@dataclass(frozen=True)
class Rolled:
    """A window of running streams. `seen (B, P, C, h, w)` is what they show up to its end, all that they had
    in their context before it and the window itself, where chunks are scored behind it; `places (P,)` are the
    latent frames of the streams that it shows, or those of the window. `added` is the loss of captions, with
    its `metrics`.
    """

    window: Window
    script: Script
    places: Tensor
    seen: Tensor | None
    added: Tensor | float = 0.0
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)


class SelfForcingStage(DiffusionStage):
    """Trains a few-step student and its critic (a `distill.trainer.Stage`)."""

    keeps_words = True

    def __init__(self, config: SelfForcingRun, device: torch.device) -> None:
        super().__init__(config, device)
        self.config = config
        require(config.init is not None, "init", "a checkpoint of the init stage", None)
        if config.script.switch_share:
            draw_switch(update_boundaries(config), config.script, torch.Generator())
        _check_chunks(config)
        _check_objective(config)
        plan = self.family.plan_of(Path(config.teacher))
        if plan is not None:
            _check_teacher(config, plan)
        specs = self.specs(config)
        self.student: RolloutStudent = self.build(specs["student"])
        self.network = self.student
        self.teacher: FlowMatching = self.build(specs["teacher"])
        self.critic: Critic = self.build(specs["critic"])
        self.objective = OBJECTIVES[type(config.objective)](config.objective)
        if self.objective.needs_clips:
            self.critic.add_judge()
        self.streams: RunningStreams | None = None
        self.prompts = None if config.prompts is None else self.family.prompts(config.prompts)
        if self.prompts is None:
            self.load_clips()

    @classmethod
    def specs(cls, config: SelfForcingRun) -> dict[str, NetworkSpec[Any]]:
        """The student that streams, and the two scores: the guided teacher and the critic, which starts from
        it.
        """
        frames = config.rollout.window_frames
        plan = ChunkPlan(frames, frames, 0, 0) if config.scoring == "windows" else None
        return {
            "student": NetworkSpec(RolloutStudent, config.init, guidance=True),
            "critic": NetworkSpec(Critic, config.teacher, guidance=True, plan=plan, heads=False),
            "teacher": NetworkSpec(FlowMatching, config.teacher, plan=plan, frozen=True),
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
        """A script and draws; exit step and kind are alike on all processes, so that they do the same work.

        Switches are, too, where processes gather each other's parameters: a recache is a forward of its own.
        """
        rollout = self.config.rollout
        generator = torch.Generator().manual_seed(tick.generator_seed("script"))
        timing = torch.Generator().manual_seed(tick.generator_seed("switch", shared=True))
        sharded = self.run.parallel == "fsdp2"
        shared = torch.Generator().manual_seed(tick.generator_seed("exit", shared=True))
        exit_step = int(torch.randint(rollout.steps, (), generator=shared))
        first = float(torch.rand((), generator=shared)) < rollout.first_share
        size = rollout.first_batch if first else rollout.batch
        script = self.script(size, generator, timing if sharded else None).to(self.device)
        limit = rollout.window_frames if tick.progress < rollout.long_from else rollout.max_frames
        told = self.told(tick) if self.target(tick.step) == "student" else None
        seeds = tick.generator_seed("streams"), tick.generator_seed("objective")
        return RolloutBatch(script, limit, exit_step, *seeds, first, told)

    def script(self, size: int, generator: torch.Generator, shared: torch.Generator | None = None) -> Script:
        """A script for `size` new streams; its switch is drawn from `shared` where that is given."""
        config, begins = self.config, update_boundaries(self.config)
        if self.prompts is not None:
            return prompt_script(
                self.prompts, size, begins, config.script, config.guidance, generator, shared
            )
        return draw_script(
            self.clips,
            size,
            begins,
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
            rolled = self.roll(module, batch, with_gradient=True)
            # the scores learn nothing here, whatever the gradient goes through
            with without_gradients(self.critic):
                scores = self.scores(rolled, generator)
                loss, metrics = self.objective.student_loss(rolled.window, scores, generator)
            return loss + rolled.added, {**metrics, **rolled.metrics}
        with torch.no_grad():
            rolled = self.roll(self.student, batch, with_gradient=False)
        told = self._told(rolled, generator)
        judged = self._judged(module, rolled, told, generator)
        return self.objective.critic_loss(
            rolled.window, lambda x, sigma: module(x, sigma, *told.all()), generator, judged
        )

    def roll(self, student: nn.Module, batch: RolloutBatch, with_gradient: bool) -> Rolled:
        """Carry the streams on to their next window, or begin others for their first chunk."""
        options, streams = self.config.rollout, self.streams
        through = options.context_gradient == "self"
        sampling = Sampling(
            FlowMatchScheduler(options.steps, options.shift).sigmas(),
            renoise=True,
            context_sigma=options.context_noise,
            exit_step=batch.exit_step,
            with_gradient=with_gradient,
        )
        if batch.first:
            streams = self._begin(batch)
            context = streams.context()
            return self._rolled(streams, student(streams, 1, sampling, batch.told, through), None, context)
        if streams is None or streams.frames + options.fresh_frames > batch.limit:
            streams = self._begin(batch)
        # an update that fails must not leave half a window behind
        self.streams = None
        before, context = streams.recent(options.window_frames - options.fresh_frames), streams.context()
        wanted = options.window_frames if before is None else options.fresh_frames
        made = student(streams, wanted, sampling, batch.told, through)
        self.streams = streams
        return self._rolled(streams, made, before, context)

    def _begin(self, batch: RolloutBatch) -> RunningStreams:
        ring = self._new_cache(len(batch.script.words))
        return RunningStreams(batch.script, LatentState(ring), batch.seed)

    def _rolled(
        self,
        streams: RunningStreams,
        made: tuple[Tensor, Tensor | float, Mapping[str, Tensor | float]],
        before: Tensor | None,
        context: tuple[Tensor | None, Tensor],
    ) -> Rolled:
        """The window of what the student `made`: behind the frames `before`, or behind the whole `context`
        that the stream had then.
        """
        fresh, added, metrics = made
        new = torch.arange(streams.frames - fresh.shape[1], streams.frames)
        if self.config.scoring == "windows":
            x = fresh if before is None else torch.cat([before, fresh], 1)
            places = torch.arange(streams.frames - x.shape[1], streams.frames)
            is_fresh = torch.arange(x.shape[1], device=x.device) >= x.shape[1] - fresh.shape[1]
            whole = Window(x, is_fresh, torch.zeros_like(is_fresh, dtype=torch.long))
            return Rolled(whole, streams.script, places, None, added, metrics)
        past, places = context
        seen = fresh.detach() if past is None else torch.cat([past, fresh.detach()], 1)
        plan = self.config.plan
        chunks = torch.tensor([plan.index_of(int(frame)) for frame in new], device=fresh.device)
        every = torch.ones_like(chunks, dtype=torch.bool)
        window = Window(fresh, every, chunks - chunks[0])
        return Rolled(window, streams.script, torch.cat([places, new]), seen, added, metrics)

    def scores(self, rolled: Rolled, generator: torch.Generator) -> Scores:
        """The teacher under joint guidance and the critic, at the window's own captions and tracks."""
        told, shape = self._told(rolled, generator), rolled.window.x.shape
        alone = None
        if self.objective.needs_alone:
            alone = score_alone(self.teacher, told, shape, self.config.plan.chunk_frames)
        judged = self._judged(self.critic, rolled, told, generator)
        real = real_score(self.teacher, told, shape)
        return Scores(real, fake_score(self.critic, told), alone, judged)

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Contact sheets of fixed streams as the student streams them."""
        self.preview(out_dir)
        return {}

    def _told(self, rolled: Rolled, generator: torch.Generator) -> Told:
        """Words, captions, tracks and strengths at the places, and what is seen as the stream has committed
        it, where chunks are scored.
        """
        script, places, seen = rolled.script, rolled.places, rolled.seen
        tracks = script.tracks_of(places)
        strengths = strengths_over(script.strengths, tracks.state, self.student.plan, places)
        segment, committed = script.segment(places), None
        if seen is not None:
            # after a recache the past is read under the caption that the new chunks have; an update never
            # spans a switch
            first = len(places) - rolled.window.x.shape[1]
            segment = torch.cat([segment[:, first : first + 1].expand(-1, first), segment[:, first:]], 1)
            level = torch.full(seen.shape[:2], self.config.rollout.context_noise, device=seen.device)
            noise = torch.randn(seen.shape, generator=generator).to(seen)
            committed = add_noise(seen, noise, level), level
        return Told(script.words, segment, tracks, strengths, committed)

    def _judged(
        self, critic: nn.Module, rolled: Rolled, told: Told, generator: torch.Generator
    ) -> Judged | None:
        """Windows of clips beside the streams' and the judgement of both, where the objective asks for it."""
        if not self.objective.needs_clips:
            return None
        config = self.config
        clips = clip_windows(
            self.clips,
            rolled.script,
            rolled.places,
            rolled.window.x.shape[1],
            config.windows.silence,
            config.plan,
            None if told.committed is None else config.rollout.context_noise,
            generator,
        )
        return Judged(
            clips.x,
            lambda x, sigma: critic(x, sigma, *clips.told.all(), True),
            lambda x, sigma: critic(x, sigma, *told.all(), True),
        )

    def _new_cache(self, batch: int) -> CacheRing:
        return self.student.new_cache(batch, self.family.grid, self.family.cache_dtype)


def update_boundaries(config: SelfForcingRun) -> list[int]:
    """The latent frames of a stream at which its updates begin, but for 0."""
    rollout = config.rollout
    return list(range(rollout.window_frames, rollout.max_frames, rollout.fresh_frames))


def _check_objective(config: SelfForcingRun) -> None:
    """What an objective or a gradient asks for has to be there."""
    plan = config.plan
    require(
        config.rollout.context_gradient == "none"
        or (plan.first_chunk_frames == plan.chunk_frames and plan.sink_frames % plan.chunk_frames == 0),
        "rollout.context_gradient",
        "none without a sink of whole chunks and a first chunk as long as the others",
        config.rollout.context_gradient,
    )
    objective = OBJECTIVES[type(config.objective)](config.objective)
    if objective.needs_clips:
        require(
            config.prompts is None,
            "prompts",
            f"null, since {config.objective.kind} needs clips",
            config.prompts,
        )
    if objective.needs_alone:
        what = f"chunks: {config.objective.kind} needs a teacher that sees a past"
        require(config.scoring == "chunks", "scoring", what, config.scoring)


def _check_teacher(config: SelfForcingRun, plan: ChunkPlan) -> None:
    """The teacher has to be of the kind that `scoring` asks for; `plan` is its own."""
    if config.scoring == "windows":
        require(
            config.rollout.window_frames <= plan.chunk_frames,
            "rollout.window_frames",
            f"<= the teacher's {plan.chunk_frames} latent frames",
            config.rollout.window_frames,
        )
        return
    require(
        (plan.chunk_frames, plan.first_chunk_frames)
        == (config.plan.chunk_frames, config.plan.first_chunk_frames),
        "teacher",
        f"a causal model with chunks of {config.plan.chunk_frames} latent frames, as scoring: chunks needs",
        f"chunks of {plan.chunk_frames}",
    )
    require(
        config.plan.first_chunk_frames == config.plan.chunk_frames
        and config.plan.sink_frames % config.plan.chunk_frames == 0,
        "plan",
        "a sink of whole chunks, and a first chunk as long as the others, where scoring is chunks",
        config.plan,
    )


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
