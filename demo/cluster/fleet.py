"""Workers as named actors of a Ray cluster: begun once, found by every front, started again when they die."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from streamgen.errors import InputError
from streamgen.render.ray_engine import connected

from .worker import About, Order, Worker

_ROOT = Path(__file__).resolve().parents[2]
# Of a cluster that is started here: nothing of ours lies in Ray's object store.
_STORE_BYTES = 100 * 2**20
# Ray has its workers give way to all else on the machine, which suits batches; here viewers wait for them.
_NICENESS = ("RAY_worker_niceness", "0")


class Crew(Protocol):
    """Workers, as a front knows them; called from threads that may wait."""

    def names(self) -> list[str]:
        """Of all workers there should be."""
        ...

    def about(self, name: str, timeout: float) -> About | None:
        """What a worker says of itself; None where it does not answer within so many seconds."""
        ...

    def dismiss(self, names: Iterable[str]) -> None:
        """End workers for good."""
        ...


@dataclass(frozen=True)
class Share:
    """What Ray sets aside for one worker: CPUs, GPUs (fractions share one), bytes of memory."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0


class Fleet:
    """The workers of one name.

    Args:
        name: of the fleet; another one is another set of workers on the same cluster.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, name: str = "streamgen") -> None:
        self.name, self._namespace = name, f"streamgen-demo-{name}"
        os.environ.setdefault(*_NICENESS)
        self._ray = connected(object_store_memory=_STORE_BYTES)
        self._handles: dict[str, Any] = {}

    def resources(self) -> dict[str, float]:
        """What the cluster has, all nodes together: CPU, GPU, memory."""
        return {name: float(value) for name, value in self._ray.cluster_resources().items()}

    def nodes(self) -> int:
        """How many machines there are."""
        return sum(bool(node["Alive"]) for node in self._ray.nodes())

    def start(self, count: int, share: Share, order: Order) -> None:
        """Begin the workers that are not there yet, numbered from 0."""
        actor = self._ray.remote(Worker)
        for number in range(count):
            self._handles[str(number)] = actor.options(
                name=str(number),
                namespace=self._namespace,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                max_concurrency=2,
                num_cpus=share.cpus,
                num_gpus=share.gpus,
                memory=share.memory or None,
                # on different machines first, and then wherever there is room
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": {"PYTHONPATH": str(_ROOT)}},
            ).remote(order)

    def names(self) -> list[str]:
        for row in self._ray.util.list_named_actors(all_namespaces=True):
            if row["namespace"] == self._namespace and row["name"] not in self._handles:
                self._handles[row["name"]] = self._ray.get_actor(row["name"], self._namespace)
        return sorted(self._handles)

    def about(self, name: str, timeout: float) -> About | None:
        try:
            found: About = self._ray.get(self._handles[name].about.remote(), timeout=timeout)
        except self._ray.exceptions.ActorDiedError as error:
            # not one that is being started again: it could not even begin
            said = [line for line in str(error).splitlines() if line.strip()]
            return About("", "", None, f"cannot be started: {said[-1].strip()}", "", 0)
        except self._ray.exceptions.RayError:
            return None
        return found

    def dismiss(self, names: Iterable[str]) -> None:
        self._kill(names, for_good=True)

    def restart(self, name: str) -> None:
        """End a worker's process; Ray starts it again."""
        self._kill([name], for_good=False)

    def _kill(self, names: Iterable[str], for_good: bool) -> None:
        for name in names:
            self._ray.kill(self._handles[name], no_restart=for_good)
            if for_good:
                del self._handles[name]


def count_of(asked: int | None, share: Share, fleet: Fleet) -> int:
    """How many workers: as asked, else as many as GPUs allow, or one for each machine without any.

    Raises:
        InputError: the cluster has no room for them.
    """
    have = fleet.resources()
    wanted = {"CPU": share.cpus, "GPU": share.gpus, "memory": share.memory}
    most = int(min(have.get(name, 0.0) / each for name, each in wanted.items() if each) + 1e-6)
    count = asked if asked is not None else most if share.gpus else min(most, fleet.nodes())
    if not 1 <= count <= most:
        raise InputError(
            f"--workers: expected at most {most}, as many as the cluster has CPUs, GPUs and memory for "
            f"({share.cpus:g} CPUs, {share.gpus:g} GPUs and {share.memory / 2**30:g} GiB each), found {count}"
        )
    return count
