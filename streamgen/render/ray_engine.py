"""The items of a run as tasks on a Ray cluster (extra `ray`).

A task is an item from claim to manifest line, as everywhere else, so the folder, which all nodes share,
decides what is done. Ray adds what it is good at: nodes that come and go, and tasks whose worker died tried
again.
"""

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, Interrupted, OutputError
from .folder import OutputFolder
from .items import RenderItem
from .runner import ItemRunner, Outcome, Policy
from .schedule import RunObserver, Summary

_RETRIES = 5
_LOOK_SECONDS = 0.5
# Tasks that wait at the scheduler, for each one that can run: more would only make stopping slower.
_QUEUED_PER_SLOT = 2


@dataclass(frozen=True)
class RayOrder:
    """What a worker needs to begin: model, device, CPU threads (None: one), runner (None: the fastest there),
    eight bits (None: full precision), and the output folder.
    """

    model: str
    device: str
    threads: int | None
    runner: str | None
    quantize: str | None
    folder: Path


class RayEngine:
    """Runs items on the cluster that RAY_ADDRESS names, or on one started here.

    Raises:
        InputError: Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, order: RayOrder, policy: Policy) -> None:
        self._ray = connected()
        model = Path(order.model)
        self._order = replace(order, model=str(model.resolve())) if model.is_dir() else order
        self._policy = policy
        resources = self._ray.cluster_resources()
        gpus = 1 if order.device != "cpu" and resources.get("GPU", 0) >= 1 else 0
        cpus = order.threads or 1
        slots = resources.get("GPU", 0) if gpus else resources.get("CPU", 1) / cpus
        self._most = max(int(slots), 1) * (1 + _QUEUED_PER_SLOT)
        # Only a worker's death is tried again: what a job raises is the job's fault and is recorded.
        self._task = self._ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES, retry_exceptions=False
        )(render_item)

    def run(
        self,
        items: Sequence[RenderItem],
        observer: RunObserver,
        stopped: Callable[[], bool],
        after_each: Callable[[], None] = lambda: None,
    ) -> Summary:
        """Render items until each is settled.

        Raises:
            OutputError: the folder cannot be written. Interrupted: `stopped` said so; tasks at work are
                ended, and their items begin anew next time.
        """
        summary = Summary(len(items))
        waiting = list(reversed(items))
        running: dict[Any, RenderItem] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._most:
                    item = waiting.pop()
                    local = replace(item, job=item.job.with_absolute_paths())
                    running[self._task.remote(self._order, self._policy, local)] = item
                ready, _ = self._ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS)
                for reference in ready:
                    item = running.pop(reference)
                    outcome = self._outcome(reference, item)
                    summary.add(outcome)
                    observer.settled(item, outcome)
                    after_each()
                if stopped():
                    raise Interrupted(f"interrupted with {len(running)} items at work")
        finally:
            for reference in running:
                self._ray.cancel(reference)
        return summary

    def _outcome(self, reference: Any, item: RenderItem) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except OutputError as error:
            raise OutputError(str(error.args[0]).splitlines()[-1]) from None
        except self._ray.exceptions.RayError as error:
            # its workers died again and again, so that none could record it
            folder = OutputFolder(self._order.folder)
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Outcome("failed", folder.failed_entry(item, "", text))
        return outcome


def render_item(order: RayOrder, policy: Policy, item: RenderItem) -> Outcome:
    """A task: one item, on whichever worker."""
    runner = _runner(order, policy)
    while True:
        outcome = runner.attempt(item)
        if outcome.status != "busy":
            return outcome
        time.sleep(_LOOK_SECONDS)
        runner.folder.manifest.refresh()


@functools.lru_cache(1)
def _runner(order: RayOrder, policy: Policy) -> ItemRunner:
    """The model is loaded once in a worker's life."""
    import torch

    from ..pipeline import load_pipeline

    torch.set_num_threads(order.threads or 1)
    pipeline = load_pipeline(order.model, order.device, runner=order.runner, quantize=order.quantize)
    return ItemRunner(pipeline, OutputFolder(order.folder), policy)


def connected(**local: Any) -> Any:
    """Ray, on the cluster that RAY_ADDRESS names, or on one that is started here.

    Args:
        local: for `ray.init` of a cluster that is started here.

    Raises:
        InputError: Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise InputError(
            '--engine ray: Ray is not installed, expected `pip install "streamgen[ray]"`'
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(
                address=os.environ.get("RAY_ADDRESS"),
                log_to_driver=False,
                **({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False} | local),
            )
        except Exception as error:  # Ray raises plain exceptions here, too
            text = " ".join(str(error).split())[:200]
            raise InputError(f"--engine ray: the cluster cannot be reached ({text})") from None
    return ray
