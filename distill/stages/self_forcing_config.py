"""Settings of the self_forcing stage, and what of them has to fit what."""

from dataclasses import dataclass, field
from typing import Literal

from models.context import ChunkPlan
from streamgen.engine.scheduler import FlowMatchScheduler

from ..config import Checked, Count, Decay, Natural, NonNegative, Share, require
from ..families import DiffusionRun
from ..guidance import GuidanceRange
from ..objectives import OBJECTIVES, DMDConfig, Objective, ObjectiveConfig
from ..reward.pictures import RewardConfig
from ..running import ScriptConfig


@dataclass(frozen=True)
class RolloutConfig(Checked, section="rollout"):
    """How streams are rolled out and scored, in latent frames.

    `batch` streams per process; an update generates `fresh_frames` (a stream's first update `window_frames`)
    and scores the last `window_frames`. Streams end after `window_frames`, and past `long_from` of the budget
    after `max_frames`, or with `grow_until` at lengths that grow to these until that part of the budget. The
    student takes up to `steps` steps at `shift`, re-noising in between, of which one
    drawn per update is the last; chunks are committed at noise level `context_noise`. A `first_share` of
    the updates see the first chunk alone, of `first_batch` new streams: it is made of words only, all else
    follows from it, and in windows it is one frame of many. Of these an `input_share` begins at clips of
    other words instead of at noise, as live input does: at one of the noise levels below 1, the same for all
    streams of the update. With `context_gradient: self` the loss reaches the student through what its streams
    have committed, too (`distill.context_gradient`); `writer` is the rank of weights that only what is
    committed has (`models.writer`), 0 for none.
    """

    batch: Count = 12
    window_frames: Count = 9
    fresh_frames: Count = 6
    max_frames: Count = 33
    long_from: Share = 0.3
    grow_until: float | None = None
    first_share: Share = 0.0
    first_batch: Count = 48
    input_share: Share = 0.0
    steps: int = 4
    shift: float = 3.0
    context_noise: Decay = 0.05
    context_gradient: Literal["none", "self"] = "none"
    writer: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.fresh_frames <= self.window_frames <= self.max_frames,
            "rollout",
            "fresh_frames <= window_frames <= max_frames",
            (self.fresh_frames, self.window_frames, self.max_frames),
        )
        if self.grow_until is not None:
            expected = f"from rollout.long_from ({self.long_from}) to 1, or null"
            inside = self.long_from <= self.grow_until <= 1
            require(inside, "rollout.grow_until", expected, self.grow_until)
        fits = self.input_share == 0 or (self.first_share > 0 and self.steps > 1)
        expected = "0 without rollout.first_share, or with one step"
        require(fits, "rollout.input_share", expected, self.input_share)
        FlowMatchScheduler(self.steps, self.shift)

    def longest(self, progress: float) -> int:
        """Latent frames after which streams end at a part `progress` of the budget; what grows grows by whole
        updates.
        """
        if progress < self.long_from:
            return self.window_frames
        if self.grow_until is None or progress >= self.grow_until:
            return self.max_frames
        part = (progress - self.long_from) / (self.grow_until - self.long_from)
        updates = (self.max_frames - self.window_frames) // self.fresh_frames
        return self.window_frames + int(part * (updates + 1)) * self.fresh_frames


@dataclass(frozen=True)
class CriticConfig(Checked, section="critic"):
    """`updates` of the critic for each of the student, `warmup` before the first one; its learning rates are
    `lr_scale` times the student's. It starts from the checkpoint `init`, whose sizes it has (null: from the
    teacher), and sees windows or chunks by its own `scoring` (null: as the teacher).
    """

    updates: Count = 4
    warmup: Natural = 40
    lr_scale: NonNegative = 1.0
    init: str | None = None
    scoring: Literal["windows", "chunks"] | None = None


@dataclass(frozen=True)
class SelfForcingRun(DiffusionRun):
    """Config of the self_forcing stage: `init` is the student's start, `teacher` the real score and the
    critic's start, both of any size. With `scoring` "windows" both see a window as a whole (the teacher is
    bidirectional); with "chunks" they are causal as the student is, and score each chunk behind what the
    stream has committed: its distribution given the past instead of the joint one. Captions and tracks come
    from the clips; or captions alone from `prompts`, a file as `streamgen render` takes it, and then no clips
    are needed.
    """

    teacher: str = "runs/tiny/teacher/export"
    scoring: Literal["windows", "chunks"] = "windows"
    prompts: str | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    script: ScriptConfig = field(default_factory=ScriptConfig)
    guidance: GuidanceRange = field(default_factory=GuidanceRange)
    objective: ObjectiveConfig = field(default_factory=DMDConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    @property
    def needs_clips(self) -> bool:
        """Prompts alone are enough."""
        return self.prompts is None

    @property
    def critic_scoring(self) -> Literal["windows", "chunks"]:
        """How the critic sees streams."""
        return self.scoring if self.critic.scoring is None else self.critic.scoring


def update_boundaries(config: SelfForcingRun, limit: int | None = None) -> list[int]:
    """The latent frames of a stream at which its updates begin, but for 0; of one that ends after `limit`."""
    rollout = config.rollout
    end = rollout.max_frames if limit is None else limit - rollout.fresh_frames + 1
    return list(range(rollout.window_frames, end, rollout.fresh_frames))


def objective_of(config: SelfForcingRun) -> Objective:
    """The objective of a run."""
    return OBJECTIVES[type(config.objective)](config.objective)


def check_run(config: SelfForcingRun, plan: ChunkPlan | None) -> None:
    """Raise ConfigError for settings that do not fit each other, or a teacher, whose plan this is (None: it
    does not say), of another kind than `scoring` asks for.
    """
    _check_chunks(config)
    _check_objective(config)
    if "chunks" in (config.scoring, config.critic_scoring) and objective_of(config).needs_scores:
        require(
            config.plan.first_chunk_frames == config.plan.chunk_frames
            and config.plan.sink_frames % config.plan.chunk_frames == 0,
            "plan",
            "a sink of whole chunks, and a first chunk as long as the others, where scoring is chunks",
            config.plan,
        )
    if plan is not None:
        _check_teacher(config, plan)


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
    shared = config.rollout.input_share
    plain = config.needs_clips and config.rollout.context_gradient == "none"
    require(not shared or plain, "rollout.input_share", "0 without clips or with context_gradient", shared)
    found = config.rollout.writer
    if found:
        what = "0 without rollout.context_gradient: self, which teaches a writer"
        require(config.rollout.context_gradient == "self", "rollout.writer", what, found)
        require(config.lora is None, "rollout.writer", "0 with lora, which trains no other weights", found)
        require(config.wan is None, "rollout.writer", "0 for a model of the Wan family", found)
        level, given = config.rollout.context_noise, config.sampling.get("context_noise", 0.0)
        require(given == level, "sampling.context_noise", f"{level:g}, at which the writer learns", given)
    rewarded = config.reward.share > 0 or config.reward.streams > 0
    fits = not rewarded or (config.prompts is None and config.wan is None and config.clips is None)
    what = "0 without clips of the procedural world, which the reward reads"
    name, share = (
        ("share", config.reward.share) if config.reward.share else ("streams", config.reward.streams)
    )
    require(fits, f"reward.{name}", what, share)
    single = not rewarded or config.plan.first_chunk_frames == 1
    require(single, f"reward.{name}", "0 with first chunks of more than a frame", share)
    objective = objective_of(config)
    if objective.needs_clips or not objective.needs_scores:
        require(
            config.prompts is None,
            "prompts",
            f"null, since {config.objective.kind} needs clips",
            config.prompts,
        )
    if not objective.needs_scores:
        what = f"0: {config.objective.kind} compares pictures that follow one another"
        require(config.rollout.first_share == 0, "rollout.first_share", what, config.rollout.first_share)
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
