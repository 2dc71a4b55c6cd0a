"""The wavefront: chunks at different steps in one tick (after Wave Forcing, arXiv 2611.00859).

A tick commits the chunk that is finished, and takes each chunk that has begun one step on. Each looks at what
its sink and window hold: committed chunks, and those before it in this tick at the noise level that they have
there, layer by layer with the keys that they make in it. Keys go one way, from older chunks to younger ones;
so processes that each compute some of the chunks pass them on in a row, and none waits for a younger one. A
process by itself computes all of them in one forward: the same tick, and its definition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from models.causal_dit import CausalDiT
from models.frontier import Alone, FrontierContext
from models.kv_cache import CacheCursor, CacheRing
from models.video_codec import VideoCodec

from ...errors import InputError
from ..attention import attention_scope
from ..guidance import Conditioning
from ..noise import NoiseSource
from ..parallel.mesh import Mesh
from ..runner import CommitTask, DenoiseTask, check_finite
from ..sampler import Sampling
from ..scheduler import add_noise, x0_from_velocity
from .ahead import AheadRunner
from .members import Member, one_pass, velocities
from .passing import Passing

# name, and by how many steps a chunk begins behind the one before it
WAVES = {"wave": 1, "wave-2": 2, "wave-3": 3}
# largest difference between processes and one process from the same state in float32, in standard deviations
TOLERANCE = 2e-5


@dataclass(frozen=True, eq=False)
class Begun:
    """A chunk between its first and its last step. A value.

    Attributes:
        index, frames: number of the chunk, and its latent frames.
        conditioning, noise, sampling: what steers it, where its draws come from, how it is solved.
        x: `(1, T, C, h, w)` what its next step starts from; behind the last one its clean latents.
        step: steps that it has made.
    """

    index: int
    frames: int
    conditioning: Conditioning
    noise: NoiseSource
    sampling: Sampling
    x: Tensor
    step: int = 0

    @property
    def left(self) -> int:
        """Steps that it still has to make."""
        return len(self.sampling.sigmas) - 1 - self.step

    def member(self) -> Member:
        """Its part of the next forward."""
        return Member.denoised(self.x, self.sampling.sigmas[self.step], self.conditioning)

    def stepped(self, velocity: Tensor) -> "Begun":
        """One step on."""
        sigma, following = list(pairwise(self.sampling.sigmas))[self.step]
        x = x0_from_velocity(self.x, velocity, sigma)
        if self.left > 1 and self.sampling.renoise:
            x = add_noise(x, self.noise.renoise(self.index, self.step, tuple(x.shape)), following)
        elif self.left > 1:
            x = self.x + (following - sigma) * velocity
        return replace(self, x=x, step=self.step + 1)


class WaveRunner(AheadRunner):
    """Overlapping chunks, by one process or by several that all ask for the same at the same time. What is no
    tick (a rebuilt cache, a chunk by itself) each of them does for itself.

    Args:
        name: one of `WAVES`.
        mesh: the processes; None: this one.

    Raises:
        InputError: more processes than there can be passes in a tick of the model's usual steps.
    """

    def __init__(
        self, name: str, dit: CausalDiT, codec: VideoCodec | None, mesh: Mesh | None, steps: int
    ) -> None:
        super().__init__(dit, codec)
        self.name, self.mesh, self.stagger = name, mesh, WAVES[name]
        most = 1 + -(-steps // self.stagger)
        if mesh is not None and mesh.size > most:
            raise InputError(
                f"{mesh.size} processes: runner {name} has at most {most} passes in a tick at {steps} steps"
            )

    @property
    def shows(self) -> bool:
        """Whether this process decodes pictures: the first one does."""
        return self.mesh is None or self.mesh.leads

    def begin(self, task: DenoiseTask) -> Begun:
        """A chunk before its first step.

        Raises:
            InputError: its steps are several predictions each.
        """
        if not one_pass(self.dit, task.conditioning):
            raise InputError(
                f"runner {self.name}: steps of several predictions (guidance of a network without an input "
                "for it, or a negative prompt) cannot overlap; expected text_guidance 1 and motion_guidance "
                "0, or runner plain"
            )
        sampling = replace(task.sampling, exit_step=None, with_gradient=False)
        first, _ = self.draws(replace(task, sampling=replace(sampling, renoise=False)))
        return Begun(task.index, task.frames, task.conditioning, task.noise, sampling, task.begun(first))

    @torch.no_grad()
    def tick(
        self,
        ring: CacheRing,
        cursor: CacheCursor,
        due: CommitTask | None,
        begun: Sequence[Begun],
        made: Callable[[Tensor], None] = lambda latents: None,
    ) -> tuple[Begun, ...]:
        """Take chunks one step on, and commit what is due behind the cursor.

        Args:
            begun: oldest first.
            made: told clean latents of the oldest one where this is its last step and this process computes
                it, while others are still at work.

        Returns:
            the chunks behind their steps, the same in all processes.

        Raises:
            NonFiniteError: a step has made something that is not finite.
        """
        members = [*([] if due is None else [Member.committed(due)]), *(each.member() for each in begun)]
        lengths, offset = [each.x.shape[1] for each in members], len(members) - len(begun)
        size, rank = (1, 0) if self.mesh is None else (self.mesh.size, self.mesh.rank)
        bounds = shares(len(members), size)
        first, stop = bounds[rank], bounds[rank + 1]
        shape = (1, sum(lengths[:first]) * ring.shape.tokens, ring.shape.heads, ring.shape.head_dim)
        link = Alone() if self.mesh is None else Passing(self.mesh, shape, ring.dtype)
        context = FrontierContext(ring, cursor, lengths, due is not None, first, stop, link)
        after = list(begun)
        with attention_scope(self.kernels):
            if first == stop:
                for layer in range(ring.shape.layers):
                    context.absorb(layer)
            else:
                found = velocities(self.dit, members[first:stop], context)
                for place in range(max(first, offset), stop):
                    after[place - offset] = begun[place - offset].stepped(found[place - first])
        if first <= offset < stop and after[0].left == 0:
            made(after[0].x)
        if isinstance(link, Passing):
            link.finish()
            after = self._told(after, [bound - offset for bound in bounds])
        finite = torch.stack([torch.isfinite(each.x).all() for each in after]).tolist()
        for each, good in zip(after, finite, strict=True):
            check_finite(each.index, [(each.step - 1, "latents")], [good])
        return tuple(after)

    def _told(self, after: list[Begun], bounds: list[int]) -> list[Begun]:
        """The chunks as the processes that computed them have them: parts from one bound to the next."""
        assert self.mesh is not None
        ranges = [range(max(0, first), max(0, stop)) for first, stop in pairwise(bounds)]
        sizes = [sum(after[i].x.numel() for i in places) for places in ranges]
        own = [after[i].x.flatten() for i in ranges[self.mesh.rank]]
        flat = after[0].x.new_zeros(1, max(sizes))
        if own:
            flat[0, : sizes[self.mesh.rank]] = torch.cat(own)
        rows, out = self.mesh.gathered(flat, 0), list(after)
        for row, places in zip(rows, ranges, strict=True):
            at = 0
            for i in places:
                x = after[i].x
                step = after[i].step if places is ranges[self.mesh.rank] else after[i].step + 1
                out[i] = replace(after[i], x=row[at : at + x.numel()].view_as(x), step=step)
                at += x.numel()
        return out


def shares(members: int, size: int) -> list[int]:
    """Bounds of the parts that processes have of the passes of a tick. The first one decodes pictures, too,
    which counts as a pass.
    """
    if size == 1:
        return [0, members]
    lead = max(1, min(members, (members + 1) // size - 1))
    bounds, rest = [0, lead], members - lead
    for place in range(1, size):
        part = -(-rest // (size - place))
        bounds.append(bounds[-1] + part)
        rest -= part
    return bounds
