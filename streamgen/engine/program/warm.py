"""Programs made at load, so that no chunk waits for one: every path that a stream can take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models.causal_dit import CausalDiT
from models.kv_cache import CacheRing

from ..sizes import Sizes, Trial, tried
from .compiled import ProgramRunner

# told how many programs are made, of how many, and which one comes
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class WarmPath:
    """A trial chunk, and whether the sink has to be turned for it."""

    trial: Trial
    turned: bool

    @property
    def label(self) -> str:
        """In words."""
        sampling = self.trial.sampling
        what = "commit" if sampling is None else f"{len(sampling.sigmas) - 1} steps"
        return f"{what}, {self.trial.frames} latent frames behind {self.trial.behind}"


def warm_paths(dit: CausalDiT, sizes: Sizes, captures: bool) -> list[WarmPath]:
    """Every path of streams that open with these sizes: while the window fills and once it is full, with the
    sink where it lies and turned, each number of steps, with motion and without; commits, of which a recache
    is made, likewise. The order is that of need.

    Args:
        captures: whether whole chunks are captured; compiled passes serve all step counts and motions.
    """
    return list(dict.fromkeys(_paths(dit, sizes, captures)))


def _paths(dit: CausalDiT, sizes: Sizes, captures: bool) -> Iterator[WarmPath]:
    plan = sizes.plan
    # a first chunk in the sink is the plain runner's
    lengths = {plan.chunk_frames} | (set() if plan.sink_frames else {plan.first_chunk_frames})
    motions = (False, True) if dit.config.motion_channels and not dit.config.guidance else (False,)
    for frames in sorted(lengths, reverse=True):
        for behind in (plan.attention_frames, plan.sink_frames):
            full = behind >= plan.context_frames
            if not captures:
                yield WarmPath(Trial(behind, frames, None), False)
                continue
            turns = (True, False) if plan.sink_frames else (False,)
            for sampling in sizes.samplings or (sizes.sampling,):
                for motion in motions:
                    for turned in turns if full else (False,):
                        yield WarmPath(Trial(behind, frames, sampling, motion, commits=False), turned)
            for turned in turns:
                yield WarmPath(Trial(behind, frames, None), turned)


def warm_up(
    runner: ProgramRunner,
    dit: CausalDiT,
    sizes: Sizes,
    ring: CacheRing,
    progress: Progress = lambda done, total, label: None,
) -> None:
    """Make the programs of all paths.

    Args:
        ring: a cache of these sizes; captures are good for streams that are lent its storage.

    Raises:
        RuntimeError: whatever the compiler or the device has to say.
    """
    paths = warm_paths(dit, sizes, runner.capture is not None)
    runner.make_room(len(paths))
    for done, path in enumerate(paths):
        progress(done, len(paths), path.label)
        shift = None if path.turned else ring.plan.sink_shift(path.trial.behind)
        ring.rotated = [shift] * len(ring.rotated)
        tried(runner, dit, sizes, ring, path.trial)
    progress(len(paths), len(paths), "")
