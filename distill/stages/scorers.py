"""How teacher and critic see a window of streams: as a whole, or chunk by chunk behind the streams' past."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from streamgen.engine.scheduler import add_noise

from ..flow import FlowMatching
from ..guidance import strengths_over
from ..latent_cache import LatentClips
from ..objectives import Denoiser, Judge, Judged, Loss, Objective, Scores, Window
from ..running import Script
from ..scoring import Critic, Told, clip_windows, fake_score, real_score, score_alone
from .self_forcing_config import SelfForcingRun

Scoring = Literal["windows", "chunks"]


@dataclass(frozen=True)
class Rolled:
    """A window of running streams. `seen (B, P, C, h, w)` is what they show up to its end: all that they had
    in their context before the `new` frames, and these; `places (P,)` are the latent frames of the streams
    that this is. `window` has the last ones of it. `added` is the loss of captions, with its `metrics`.
    """

    window: Window
    script: Script
    places: Tensor
    seen: Tensor
    new: int
    added: Tensor | float = 0.0
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)


class Scorers:
    """The guided teacher, the critic and what they are told; each is causal or not, as the config says.

    Where only one of them scores chunks, windows have one noise level as a whole, and it scores the new
    frames of them alone; nothing is compared on the others.
    """

    def __init__(
        self,
        config: SelfForcingRun,
        objective: Objective,
        teacher: FlowMatching,
        critic: Critic,
        clips: LatentClips | None,
    ) -> None:
        self.config, self.objective = config, objective
        self.teacher, self.critic, self.clips = teacher, critic, clips
        if objective.needs_clips:
            critic.add_judge()

    def scores(self, rolled: Rolled, generator: torch.Generator) -> Scores:
        """The teacher under joint guidance and the critic, at the window's own captions and tracks."""
        config, shape = self.config, rolled.window.x.shape
        told = self._told(rolled, {config.scoring, config.critic_scoring}, generator)
        teacher, critic = told[config.scoring], told[config.critic_scoring]
        scored = shape if config.scoring == "windows" else torch.Size((shape[0], rolled.new, *shape[2:]))
        real, alone = real_score(self.teacher, teacher, scored), None
        if self.objective.needs_alone:
            alone = score_alone(self.teacher, teacher, scored, config.plan.chunk_frames)
        return Scores(
            self._where(config.scoring, real, rolled),
            self._where(config.critic_scoring, fake_score(self.critic, critic), rolled),
            None if alone is None else self._where(config.scoring, alone, rolled),
            self._judged(self.critic, rolled, critic, generator),
        )

    def critic_loss(self, critic: nn.Module, rolled: Rolled, generator: torch.Generator) -> Loss:
        """The loss of the critic in its prepared form."""
        kind = self.config.critic_scoring
        told = self._told(rolled, {kind}, generator)[kind]

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            found: Tensor = critic(x, sigma, told)
            return found

        judged = self._judged(critic, rolled, told, generator)
        return self.objective.critic_loss(
            rolled.window, self._where(kind, velocity, rolled), generator, judged
        )

    def _where(self, kind: Scoring, score: Denoiser, rolled: Rolled) -> Denoiser:
        """A score of whole windows; of one of chunks, what it says of the new frames, and the others as they
        are.
        """
        return score if kind == "windows" else _of_last(rolled.new, score, lambda x: x)

    def _told(
        self, rolled: Rolled, kinds: set[Scoring], generator: torch.Generator
    ) -> Mapping[Scoring, Told]:
        """Words, captions, tracks and strengths of a window, and with `chunks` of all that is seen, as the
        stream has committed it.
        """
        told: dict[Scoring, Told] = {}
        for kind in sorted(kinds):
            script, shown = rolled.script, rolled.window.x.shape[1]
            places = rolled.places if kind == "chunks" else rolled.places[-shown:]
            tracks = script.tracks_of(places)
            strengths = strengths_over(script.strengths, tracks.state, self.config.plan, places)
            segment, committed = script.segment(places), None
            if kind == "chunks":
                # after a recache the past is read under the caption that the new chunks have; an update never
                # spans a switch
                first = len(places) - rolled.new
                segment = torch.cat([segment[:, first : first + 1].expand(-1, first), segment[:, first:]], 1)
                level = torch.full(rolled.seen.shape[:2], self.config.rollout.context_noise)
                noise = torch.randn(rolled.seen.shape, generator=generator).to(rolled.seen)
                committed = add_noise(rolled.seen, noise, level.to(rolled.seen)), level.to(rolled.seen)
            told[kind] = Told(script.words, segment, tracks, strengths, committed)
        return told

    def _judged(
        self, critic: nn.Module, rolled: Rolled, told: Told, generator: torch.Generator
    ) -> Judged | None:
        """Windows of clips beside the streams' and the judgement of both, where the objective asks for it."""
        if not self.objective.needs_clips:
            return None
        config, shown = self.config, rolled.window.x.shape[1]
        assert self.clips is not None
        clips, of_clips = clip_windows(
            self.clips,
            rolled.script,
            rolled.places if told.committed is not None else rolled.places[-shown:],
            shown,
            config.windows.silence,
            config.plan,
            None if told.committed is None else config.rollout.context_noise,
            generator,
        )

        def judge(of: Told) -> Judge:
            def tell(x: Tensor, sigma: Tensor) -> Tensor:
                found: Tensor = critic(x, sigma, of, True)
                return found

            return tell if told.committed is None else _of_last(rolled.new, tell, lambda x: x[:, :, 0, 0, 0])

        return Judged(clips, judge(of_clips), judge(told))


def _of_last(count: int, score: Denoiser, others: Callable[[Tensor], Tensor]) -> Denoiser:
    """What `score` says of the last `count` frames, behind what `others` makes of those before them."""

    def of_last(x: Tensor, sigma: Tensor) -> Tensor:
        found = score(x[:, -count:], sigma[:, -count:])
        return found if x.shape[1] == count else torch.cat([others(x[:, :-count]).to(found), found], 1)

    return of_last
