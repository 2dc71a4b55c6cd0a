"""How many steps a chunk takes: which of the trained noise levels, and how many fit into a deadline.

A few-step student knows the noise levels it was distilled at and no others, so fewer steps are a subset of
those, never another schedule (Causal-Forcing++'s schedule takes them where a stream begins or changes).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import InputError
from ..suggest import shorten

# of the deadline, what is left for what nobody foresees
_MARGIN = 0.05
# how much of a step has to be free before one more is taken: what is measured scatters
_UPWARD = 0.3
# weight of the newest chunk in what is expected
_NEWEST = 0.3
# chunks of one step that come late before it is said that no step count is enough
_HOPELESS = 3


def subset(sigmas: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """`steps + 1` of falling noise levels that end in 0: the first, the last, and between them every so
    many-th.

    Raises:
        ValueError: less than one step, or more than there are.
    """
    count = len(sigmas) - 1
    if not 1 <= steps <= count:
        raise ValueError(f"expected 1 to {count} steps, found {steps}")
    # half up, where Python rounds to even
    return (*(sigmas[math.floor(i * count / steps + 0.5)] for i in range(steps)), sigmas[-1])


@dataclass(frozen=True)
class StepBudget:
    """What chunks have taken, and how many steps the next one may take to be there in time. A value.

    Attributes:
        seconds: the deadline: from the beginning of a chunk, the commit of the one before counted, to its
            pictures.
        per_step, rest, rebuild: expected seconds of one denoising step, of commit and decode, and of an event
            that rebuilds the cache; None where none was seen.
        late: how many chunks in a row took one step and came late.
    """

    seconds: float
    per_step: float | None = None
    rest: float = 0.0
    rebuild: float | None = None
    late: int = 0

    @classmethod
    def of(cls, deadline_ms: float) -> "StepBudget":
        """The budget of a stream before its first chunk.

        Raises:
            InputError: no positive number of milliseconds.
        """
        number = isinstance(deadline_ms, int | float) and not isinstance(deadline_ms, bool)
        if not number or not 0 < deadline_ms < math.inf:
            raise InputError(
                f"deadline: expected a positive number of milliseconds, found {shorten(deadline_ms)}"
            )
        return cls(deadline_ms / 1000)

    @property
    def note(self) -> str | None:
        """One line where no step count meets the deadline."""
        if self.late < _HOPELESS or self.per_step is None:
            return None
        least = 1000 * (self.rest + self.per_step)
        return (
            f"deadline: {1000 * self.seconds:g} ms cannot be met, a chunk of one step takes about "
            f"{least:.0f} ms here; going on with one step"
        )

    def choose(self, now: int, most: int, rebuilds: bool = False) -> int:
        """Steps of the next chunk: as many as fit, at least one. A step more than the chunk of before is only
        taken where there is some time to spare.

        Args:
            now: steps that the chunk would take without a deadline, or took last.
            most: as many as there are.
            rebuilds: whether the cache is rebuilt before.
        """
        if self.per_step is None:
            return max(1, min(now, most))
        # a rebuild that was never seen is taken for the commits that it is at least
        extra = 0.0 if not rebuilds else self.rest if self.rebuild is None else self.rebuild
        room = (self.seconds * (1 - _MARGIN) - self.rest - extra) / max(self.per_step, 1e-9)
        fitting = math.floor(min(room, most))
        if fitting > now:
            fitting = max(now, math.floor(min(room - _UPWARD, most)))
        return max(1, fitting)

    def after(self, timings: Mapping[str, float], steps: int, rebuilt: bool = False) -> "StepBudget":
        """The budget once a chunk is made.

        Args:
            timings: seconds by part, as `FrameChunk.timings` has them.
            steps: that it took; 0 of a chunk that was given.
            rebuilt: whether the cache was rebuilt before.
        """
        if steps < 1:
            return self
        rest = timings.get("commit", 0.0) + timings.get("decode", 0.0)
        per_step = timings.get("denoise", 0.0) / steps
        event = timings.get("event", 0.0)
        late = steps == 1 and not rebuilt and rest + per_step + event > self.seconds
        first = self.per_step is None
        return replace(
            self,
            per_step=_mean(self.per_step, per_step),
            # the first chunk has no commit before it
            rest=rest if first or not self.rest else _mean(self.rest, rest),
            rebuild=_mean(self.rebuild, event) if rebuilt else self.rebuild,
            late=self.late + 1 if late else 0 if not self.note else self.late,
        )


def _mean(before: float | None, newest: float) -> float:
    return newest if before is None else before + _NEWEST * (newest - before)
