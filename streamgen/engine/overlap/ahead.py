"""Commit-ahead: the commit of a chunk and the first step of the next one in one forward."""

import torch
from torch import Tensor

from models.frontier import FrontierContext

from ..runner import DenoiseTask, PlainRunner
from ..sampler import Velocity
from .members import Member, one_pass, velocities

# largest difference to a chunk of the plain runner from the same state in float32, in standard deviations
TOLERANCE = 2e-5


class AheadRunner(PlainRunner):
    """The plain runner, one forward less for each chunk. What needs several predictions a step (guidance of a
    network that has no input for it, words to turn away from) is committed by itself, as are a rebuilt cache
    and chunks that are given.
    """

    name = "ahead"
    commits_ahead = True

    @torch.no_grad()
    def denoise(self, task: DenoiseTask) -> Tensor:
        """See `Runner`."""
        assert not task.sampling.with_gradient, "training runs on the plain runner"
        return super().denoise(task)

    def velocity_of(self, task: DenoiseTask) -> Velocity:
        """See `PlainRunner`."""
        due = task.due
        if due is None:
            return super().velocity_of(task)
        if not one_pass(self.dit, task.conditioning):
            self.commit(due)
            return super().velocity_of(task)
        conditioning, later = task.conditioning, list[Velocity]()

        def velocity(x: Tensor, sigma: float) -> Tensor:
            if later:
                return later[0](x, sigma)
            context = FrontierContext(task.ring, due.cursor, (due.frames, task.frames), True)
            members = (Member.committed(due), Member.denoised(x, sigma, conditioning))
            found = velocities(self.dit, members, context)[1]
            # from here on the cache has it
            later.append(self.velocity(task.ring.view(task.cursor, task.frames), conditioning))
            return found

        return velocity
