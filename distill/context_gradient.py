"""Gradients through what a stream has committed (Self Gradient Forcing, arXiv 2607.20368).

In Self Forcing the context is committed without gradient: the student learns to denoise behind it, never to
write a context that is good to denoise behind. Here a rollout runs without gradient and is then computed once
more, in parallel: the exit step of all new chunks at once, behind the keys and values of all that was
committed, with gradient through these, too. Latents stay as they are.

The second pass reads the past from the sink on, as after a recache; keys and values of a stream that has gone
on for longer know of frames that have left its window since. So the values are those of the rollout, and only
the gradient is that of the second pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.causal_dit import CausalDiT
from models.kv_cache import CacheCursor, CacheView
from models.motion_encoder import Tracks
from models.writer import written
from streamgen.engine.guidance import Conditioning
from streamgen.engine.noise import NoiseSource
from streamgen.engine.runner import CommitTask, DenoiseTask, PlainRunner
from streamgen.engine.sampler import Velocity
from streamgen.engine.scheduler import x0_from_velocity
from streamgen.stream.latents import LatentChunk

from .flow import FlowNetwork, Past
from .guidance import strengths_over


class StreamScript(Protocol):
    """What B streams are told."""

    @property
    def words(self) -> Tensor:
        """Ids `(B, 3, L)` of the captions before and after the switch, and of none."""
        ...

    @property
    def switch(self) -> int | None:
        """The latent frame from which the second caption holds; None for never."""
        ...

    @property
    def strengths(self) -> Tensor:
        """Of guidance, `(B, 2)`."""
        ...

    def tracks_of(self, places: Tensor) -> Tracks:
        """Tracks over the pixel frames of the latent frames `places (T,)`."""
        ...


@dataclass(frozen=True)
class Exit:
    """What the exit step of a chunk was given: noisy latents `(B, T, C, h, w)` and their noise level."""

    x: Tensor
    sigma: float


class StudentRunner(PlainRunner):
    """The plain runner of a student in training, which commits as its writer does now, where it has one."""

    def commit(self, task: CommitTask) -> CacheCursor:
        """See `PlainRunner`."""
        frames = torch.ones(task.frames, device=task.latents.device)
        with written(frames if self.dit.config.writer else None):
            return super().commit(task)


class ExitRecorder(StudentRunner):
    """One which keeps what each chunk's last step was given."""

    def __init__(self, dit: CausalDiT) -> None:
        super().__init__(dit)
        #: One for each chunk so far.
        self.exits: list[Exit] = []
        self._last: Exit | None = None

    def denoise(self, task: DenoiseTask) -> Tensor:
        latents = super().denoise(task)
        assert self._last is not None
        self.exits.append(self._last)
        return latents

    def velocity(self, view: CacheView, conditioning: Conditioning) -> Velocity:
        solve = super().velocity(view, conditioning)

        def noting(x: Tensor, sigma: float) -> Tensor:
            self._last = Exit(x, sigma)
            return solve(x, sigma)

        return noting


def through_context(
    student: FlowNetwork,
    script: StreamScript,
    before: Sequence[LatentChunk],
    made: Sequence[LatentChunk],
    exits: Sequence[Exit],
    noise: NoiseSource,
) -> Tensor:
    """Clean estimates of the chunks `made`, `(B, T, C, h, w)`, behind all that they see read anew, with
    gradient through their exit step and through the keys and values of that.

    Args:
        script: what the streams are told; all of it is read under the caption of the new chunks, as an update
            never spans a switch and a recache reads the past anew.
        before: what the streams had in their context, sink first.
        exits: what the exit steps were given.
        noise: of the streams, whose draws what is committed gets.
    """
    chunks = [*before, *made]
    seen = torch.cat([chunk.committed(noise) for chunk in chunks], 1)
    size, device, count = len(seen), seen.device, sum(chunk.frames for chunk in made)
    committed_at = torch.tensor([chunk.sigma for chunk in chunks for _ in range(chunk.frames)], device=device)
    places = torch.cat([torch.arange(chunk.start, chunk.start + chunk.frames) for chunk in chunks])
    after = script.switch is not None and int(places[-count]) >= script.switch
    segment = torch.full((size, len(places)), int(after), device=device)
    tracks = script.tracks_of(places)
    motion = student.motion(tracks, (seen.shape[3], seen.shape[4]))
    strengths = strengths_over(script.strengths, tracks.state, student.plan, places)
    x = torch.cat([one.x for one in exits], 1)
    sigma = torch.tensor([one.sigma for one in exits for _ in range(one.x.shape[1])], device=device)
    velocity = student.velocity(
        x,
        sigma.expand(size, -1),
        student.text(script.words, segment[:, -count:]),
        motion[:, -count:],
        strengths[:, -count:],
        Past(seen, committed_at.expand(size, -1), segment, motion),
    )
    return x0_from_velocity(x, velocity, sigma.expand(size, -1))


def with_gradient_of(values: Tensor, other: Tensor) -> Tensor:
    """`values`, with the gradient of `other`."""
    return values.detach() + other - other.detach()
