"""Self Forcing (arXiv 2506.08009): the student learns on its own streams, by distribution matching.

Streams are rolled out as at inference, with sink, window, switches and recache, each chunk behind what the
student itself has committed. A guided bidirectional teacher is the real score, a critic that learns the
student's own distribution the fake one; with a causal teacher both score every chunk behind the stream's own
past instead (`scoring: chunks`). What is made of the scores is the `objective` (`distill.objectives`). Past
`long_from` of the budget streams go on over many updates (streaming long tuning, LongLive, arXiv 2509.22622),
so that the student meets its own drift.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.context import ChunkPlan
from models.kv_cache import CacheRing
from models.video_codec import VideoCodec
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import FlowMatchScheduler
from streamgen.engine.source import Source

from ..config import require
from ..evaluation.features import ReaderFeatures
from ..families import NetworkSpec, TinyFamily
from ..flow import FlowMatching
from ..objectives import FrechetConfig, FrechetMatching, Scores, Window
from ..optim import ParameterGroups
from ..pictured import Pictured
from ..running import RolloutStudent, RunningStreams, Script, draw_script, draw_switch, prompt_script
from ..scoring import Critic, without_gradients
from ..trainer import Tick
from ..words.told import ToldBatch
from .diffusion import DiffusionStage
from .judged import JudgedStreams
from .scorers import Rolled, Scorers
from .self_forcing_config import SelfForcingRun, check_run, objective_of, update_boundaries

__all__ = ["SelfForcingRun", "SelfForcingStage"]

# Clips that the pictures which streams are made from are looked for in.
_CANDIDATES = 64


@dataclass(frozen=True)
class RolloutBatch:
    """What an update draws: a script for streams that begin with it, how many latent frames a stream may
    have, the exit step, the streams' seed, and the seed of the objective's noise; `first` where new streams
    are to show their first chunk alone; captions that the student's text encoder is `told`; `pictures` that
    new streams are made from, clean latents `(B, T, C, h, w)` of their first chunk, noised to step `begin`;
    what captions of first pictures tell that are `judged` beside the objective.
    """

    script: Script
    limit: int
    exit_step: int
    seed: int
    objective_seed: int
    first: bool = False
    told: ToldBatch | None = None
    pictures: Tensor | None = None
    begin: int = 0
    judged: ToldBatch | None = None


class SelfForcingStage(DiffusionStage):
    """Trains a few-step student and its critic (a `distill.trainer.Stage`)."""

    keeps_words = True

    def __init__(self, config: SelfForcingRun, device: torch.device) -> None:
        super().__init__(config, device)
        self.config = config
        require(config.init is not None, "init", "a checkpoint of the init stage", None)
        if config.script.switch_share:
            draw_switch(update_boundaries(config), config.script, torch.Generator())
        self.objective = objective_of(config)
        scored = self.objective.needs_scores
        check_run(config, self.family.plan_of(Path(config.teacher)) if scored else None)
        specs = self.specs(config)
        self.student: RolloutStudent = self.build("student", specs["student"])
        self.network = self.student
        self.streams: RunningStreams | None = None
        self.prompts = None if config.prompts is None else self.family.prompts(config.prompts)
        if self.prompts is None:
            self.load_clips()
        clips = self.clips if self.prompts is None else None
        self.scorers: Scorers | None = None
        self.pictured: Pictured | None = None
        if scored:
            teacher: FlowMatching = self.build("teacher", specs["teacher"])
            critic: Critic = self.build("critic", specs["critic"])
            self.scorers = Scorers(config, self.objective, teacher, critic, clips)
        else:
            self.pictured = self._pictured()
        self.judge: JudgedStreams | None = None
        if config.reward.share or config.reward.streams:
            assert isinstance(self.family, TinyFamily), "a config with a reward is of the procedural world"
            self.judge = JudgedStreams(config, self.family, self.device)

    @classmethod
    def specs(cls, config: SelfForcingRun) -> dict[str, NetworkSpec[Any]]:
        """The student that streams, and the two scores: the guided teacher and the critic, which starts from
        it or elsewhere. Each has the sizes of its start.
        """
        student: NetworkSpec[Any] = NetworkSpec(
            RolloutStudent, config.init, guidance=True, writer=config.rollout.writer
        )
        if not objective_of(config).needs_scores:
            return {"student": student}
        frames, own = config.rollout.window_frames, config.critic.init
        whole = ChunkPlan(frames, frames, 0, 0)
        plans = [whole if kind == "windows" else None for kind in (config.scoring, config.critic_scoring)]
        critic: NetworkSpec[Any] = NetworkSpec(
            Critic,
            config.teacher if own is None else own,
            guidance=True,
            plan=plans[1],
            heads=False,
            sizes="teacher" if own is None else "start",
        )
        return {
            "student": student,
            "critic": critic,
            "teacher": NetworkSpec(FlowMatching, config.teacher, plan=plans[0], frozen=True, sizes="teacher"),
        }

    @property
    def teacher(self) -> FlowMatching:
        """The real score, where there is one."""
        assert self.scorers is not None
        return self.scorers.teacher

    @property
    def critic(self) -> Critic:
        """The fake score, where there is one."""
        assert self.scorers is not None
        return self.scorers.critic

    def modules(self) -> dict[str, nn.Module]:
        """The student, and the critic where there is one."""
        trained: dict[str, nn.Module] = {"student": self.student}
        return trained if self.scorers is None else trained | {"critic": self.scorers.critic}

    def frozen(self) -> dict[str, nn.Module]:
        """Networks that are never trained."""
        return {} if self.scorers is None else {"teacher": self.scorers.teacher}

    def optimizer_groups(self) -> dict[str, ParameterGroups]:
        """See `DiffusionStage`; the critic has rates of its own."""
        groups, scale = super().optimizer_groups(), self.config.critic.lr_scale
        for name in groups.keys() - {"student"}:
            groups[name] = replace(groups[name], matrices_lr_scale=scale, others_lr_scale=scale)
        return groups

    def target(self, step: int) -> str:
        """The critic in its warm-up, later one update of the student behind each `updates` of the critic; the
        student where there is none.
        """
        critic = self.config.critic
        after = step - critic.warmup
        own = after >= 0 and after % (critic.updates + 1) == critic.updates
        return "student" if own or self.scorers is None else "critic"

    def state(self) -> dict[str, Any]:
        """The running streams of this process, and what its objective knows of earlier ones."""
        streams = None if self.streams is None else self.streams.save()
        objective = self.objective
        known = {"objective": objective.state()} if isinstance(objective, FrechetMatching) else {}
        return {"streams": streams} | known

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over saved streams."""
        saved = state["streams"]
        if isinstance(self.objective, FrechetMatching):
            self.objective.load_state(state["objective"])
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
        sharded = self.run.parallel != "ddp"
        shared = torch.Generator().manual_seed(tick.generator_seed("exit", shared=True))
        exit_step = int(torch.randint(rollout.steps, (), generator=shared))
        first = float(torch.rand((), generator=shared)) < rollout.first_share
        size = rollout.first_batch if first else rollout.batch
        heard = first and float(torch.rand((), generator=shared)) < rollout.input_share
        begin = 1 + int(torch.randint(rollout.steps - 1, (), generator=shared)) if heard else 0
        limit = rollout.longest(tick.progress)
        judge = self.judge
        asks = judge is not None and not first and self.config.reward.streams > 0
        if (
            judge is not None
            and asks
            and float(torch.rand((), generator=shared)) < self.config.reward.streams
        ):
            script = judge.script(size, generator, timing if sharded else None, limit)
        else:
            script = self.script(size, generator, timing if sharded else None, limit)
        told = self.told(tick) if self.target(tick.step) == "student" else None
        seeds = tick.generator_seed("streams"), tick.generator_seed("objective")
        pictures = self._pictures(script, generator) if heard else None
        judged = None
        may = self.judge is not None and first and self.target(tick.step) == "student"
        if may and float(torch.rand((), generator=shared)) < self.config.reward.share:
            assert self.judge is not None
            judged, pictures, begin = self.judge.captions.draw(size, generator), None, 0
            script = script.of_words(judged.ids)
        # of the steps that are left from there
        exit_step = begin + exit_step % (rollout.steps - begin)
        return RolloutBatch(script, limit, exit_step, *seeds, first, told, pictures, begin, judged)

    def _pictures(self, script: Script, generator: torch.Generator) -> Tensor:
        """What each new stream is made from: of some clips the first chunk of the one whose caption is most
        like the stream's own, so that a part of it is right as it is.
        """
        rows = torch.randint(len(self.clips.words), (_CANDIDATES,), generator=generator)
        words, captions = script.words[:, 0].cpu(), self.clips.words[rows, 0].long()
        alike = (words[:, None] == captions[None]).sum(-1)
        # the same words would leave nothing to change
        alike = alike.masked_fill(alike == words.shape[1], -1)
        frames = self.config.plan.first_chunk_frames
        return self.clips.latents[rows[alike.argmax(1)], :frames].float().to(self.device)

    def script(
        self,
        size: int,
        generator: torch.Generator,
        shared: torch.Generator | None = None,
        limit: int | None = None,
    ) -> Script:
        """A script for `size` new streams; its switch is drawn from `shared` where that is given, and comes
        before they end, after `limit` latent frames.
        """
        config, begins = self.config, update_boundaries(self.config, limit)
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
            loss, metrics = self._student_loss(rolled, generator)
            loss, metrics = loss + rolled.added, {**metrics, **rolled.metrics}
            if self.judge is None:
                return loss, metrics
            reward, found = self.judge.loss(rolled, batch.judged)
            return loss + reward, {**metrics, **found}
        assert self.scorers is not None
        with torch.no_grad():
            rolled = self.roll(self.student, batch, with_gradient=False)
        return self.scorers.critic_loss(module, rolled, generator)

    def _student_loss(
        self, rolled: Rolled, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The objective's loss for the student."""
        if self.scorers is None:
            assert self.pictured is not None
            shown = self.pictured.shown(rolled.seen, rolled.window.x[:, -rolled.new :], rolled.places)
            return self.objective.student_loss(rolled.window, Scores(shown=shown), generator)
        # the scores learn nothing here, whatever the gradient goes through
        with without_gradients(self.scorers.critic):
            scores = self.scorers.scores(rolled, generator)
            return self.objective.student_loss(rolled.window, scores, generator)

    def _pictured(self) -> Pictured:
        """What clips show, and how it is told of streams."""
        config, objective = self.config, self.config.objective
        assert isinstance(objective, FrechetConfig)
        features = ReaderFeatures(config.scenes, self.device)
        total = self.clips.latents.shape[1]
        codec = cast(VideoCodec, self.family.codec)
        return Pictured(codec, features, self.clips, total, objective.clips, config.seed)

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
            context, source = streams.context(), None
            if batch.pictures is not None:
                left, source = sampling.sigmas[batch.begin :], Source(batch.pictures)
                sampling = replace(sampling, sigmas=left, exit_step=batch.exit_step - batch.begin)
            made = student(streams, 1, sampling, batch.told, through, source)
            return self._rolled(streams, made, None, context)
        if streams is None or streams.frames + options.fresh_frames > batch.limit:
            streams = self._begin(batch)
        # an update that fails must not leave half a window behind
        self.streams = None
        if self.judge is not None:
            self.judge.begin_drags(streams)
        before, context = streams.recent(options.window_frames - options.fresh_frames), streams.context()
        wanted = options.window_frames if before is None else options.fresh_frames
        made = student(streams, wanted, sampling, batch.told, through)
        self.streams = streams
        return self._rolled(streams, made, before, context)

    def _begin(self, batch: RolloutBatch) -> RunningStreams:
        ring = self._new_cache(len(batch.script.words))
        return RunningStreams.begun(batch.script, ring, batch.seed, self.config.rollout.context_noise)

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
        (fresh, added, metrics), (past, places) = made, context
        count = fresh.shape[1]
        new = torch.arange(streams.frames - count, streams.frames)
        seen = fresh.detach() if past is None else torch.cat([past, fresh.detach()], 1)
        if "windows" in (self.config.scoring, self.config.critic_scoring):
            x = fresh if before is None else torch.cat([before, fresh], 1)
            is_fresh = torch.arange(x.shape[1], device=x.device) >= x.shape[1] - count
            window = Window(x, is_fresh, torch.zeros_like(is_fresh, dtype=torch.long))
        else:
            plan = self.config.plan
            chunks = torch.tensor([plan.index_of(int(frame)) for frame in new], device=fresh.device)
            window = Window(fresh, torch.ones_like(chunks, dtype=torch.bool), chunks - chunks[0])
        return Rolled(window, streams.script, torch.cat([places, new]), seen, count, added, metrics)

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Contact sheets of fixed streams as the student streams them."""
        self.preview(out_dir)
        return {}

    def _new_cache(self, batch: int) -> CacheRing:
        return self.student.new_cache(batch, self.family.grid, self.family.cache_dtype)
