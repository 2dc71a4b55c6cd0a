"""Self Forcing (arXiv 2506.08009): the student learns on its own streams, by distribution matching.

Streams are rolled out as at inference, with sink, window, switches and recache, each chunk behind what the
student itself has committed. A guided bidirectional teacher is the real score, a critic that learns the
student's own distribution the fake one; with a causal teacher both score every chunk behind the stream's own
past instead (`scoring: chunks`). What is made of the scores is the `objective` (`distill.objectives`). Past
`long_from` of the budget streams go on over many updates (streaming long tuning, LongLive, arXiv 2509.22622),
so that the student meets its own drift.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.context import ChunkPlan
from models.kv_cache import CacheRing
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import FlowMatchScheduler
from streamgen.stream.latents import LatentState

from ..config import require
from ..families import NetworkSpec
from ..flow import FlowMatching
from ..objectives import OBJECTIVES, Window
from ..optim import ParameterGroups
from ..running import RolloutStudent, RunningStreams, Script, draw_script, draw_switch, prompt_script
from ..scoring import Critic, without_gradients
from ..trainer import Tick
from ..words.told import ToldBatch
from .diffusion import DiffusionStage, optimizer_groups
from .scorers import Rolled, Scorers
from .self_forcing_config import SelfForcingRun, check_run, update_boundaries

__all__ = ["SelfForcingRun", "SelfForcingStage"]


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


class SelfForcingStage(DiffusionStage):
    """Trains a few-step student and its critic (a `distill.trainer.Stage`)."""

    keeps_words = True

    def __init__(self, config: SelfForcingRun, device: torch.device) -> None:
        super().__init__(config, device)
        self.config = config
        require(config.init is not None, "init", "a checkpoint of the init stage", None)
        if config.script.switch_share:
            draw_switch(update_boundaries(config), config.script, torch.Generator())
        check_run(config, self.family.plan_of(Path(config.teacher)))
        specs = self.specs(config)
        self.student: RolloutStudent = self.build("student", specs["student"])
        self.network = self.student
        self.teacher: FlowMatching = self.build("teacher", specs["teacher"])
        self.critic: Critic = self.build("critic", specs["critic"])
        self.objective = OBJECTIVES[type(config.objective)](config.objective)
        if self.objective.needs_clips:
            self.critic.add_judge()
        self.streams: RunningStreams | None = None
        self.prompts = None if config.prompts is None else self.family.prompts(config.prompts)
        if self.prompts is None:
            self.load_clips()
        clips = self.clips if self.prompts is None else None
        self.scorers = Scorers(config, self.objective, self.teacher, self.critic, clips)

    @classmethod
    def specs(cls, config: SelfForcingRun) -> dict[str, NetworkSpec[Any]]:
        """The student that streams, and the two scores: the guided teacher and the critic, which starts from
        it or elsewhere. Each has the sizes of its start.
        """
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
            "student": NetworkSpec(RolloutStudent, config.init, guidance=True),
            "critic": critic,
            "teacher": NetworkSpec(FlowMatching, config.teacher, plan=plans[0], frozen=True, sizes="teacher"),
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
                scores = self.scorers.scores(rolled, generator)
                loss, metrics = self.objective.student_loss(rolled.window, scores, generator)
            return loss + rolled.added, {**metrics, **rolled.metrics}
        with torch.no_grad():
            rolled = self.roll(self.student, batch, with_gradient=False)
        return self.scorers.critic_loss(module, rolled, generator)

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
