"""How long a run will take, from a few chunks made on this machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..pipeline import Pipeline
from ..render.items import RenderItem

_WARM_CHUNKS = 2
_CHUNKS = 4
# A large model on a slow machine must not turn a dry run into an hour.
_MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Pace:
    """Seconds per chunk: `per_step` for each denoising step, `rest` for everything else."""

    per_step: float
    rest: float
    frames: int

    def seconds(self, frames: int, steps: int) -> float:
        """For a clip of so many frames."""
        return frames / self.frames * (self.per_step * steps + self.rest)


def measure_pace(pipeline: Pipeline, prompt: str) -> Pace:
    """The pace of a stream with the model's own settings, whose window is not yet full: an estimate."""
    session = pipeline.open(prompt)
    denoise = total = 0.0
    frames = chunks = 0
    began = time.perf_counter()
    for number in range(_WARM_CHUNKS + _CHUNKS):
        start = time.perf_counter()
        chunk = next(session)
        took = time.perf_counter() - start
        late = time.perf_counter() - began > _MOST_SECONDS
        if number >= _WARM_CHUNKS or late:
            denoise += chunk.timings["denoise"]
            total, frames, chunks = total + took, frames + len(chunk.frames), chunks + 1
        if late:
            break
    steps = pipeline.settings.steps
    return Pace(denoise / chunks / steps, (total - denoise) / chunks, max(frames // chunks, 1))


def estimate_seconds(pipeline: Pipeline, items: Sequence[RenderItem]) -> float:
    """Seconds that items take one after the other."""
    if not items:
        return 0.0
    pace = measure_pace(pipeline, str(items[0].job.shots[0].prompt))
    fps = pipeline.geometry.fps
    total = 0.0
    for item in items:
        steps = item.job.set.get("steps", pipeline.settings.steps)
        total += pace.seconds(item.job.length(fps), steps if isinstance(steps, int) else 1)
    return total
