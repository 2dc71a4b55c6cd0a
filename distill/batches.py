"""Micro-batches of a stage, optionally made one ahead in a background thread."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from .stage import Stage, Tick


class Batches:
    """Fetches micro-batches; with `ahead` the same micro-batch of the next step is made meanwhile."""

    def __init__(self, stage: Stage, ahead: bool) -> None:
        self._stage = stage
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead else None
        self._pending: tuple[Tick, Future[Any]] | None = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, tick: Tick) -> Any:
        """The micro-batch of `tick`."""
        if self._pool is None:
            return self._stage.batch(tick)
        pending, self._pending = self._pending, None
        matches = pending is not None and (pending[0].step, pending[0].micro) == (tick.step, tick.micro)
        batch = pending[1].result() if pending is not None and matches else self._stage.batch(tick)
        following = replace(tick, step=tick.step + 1)
        self._pending = (following, self._pool.submit(self._stage.batch, following))
        return batch
