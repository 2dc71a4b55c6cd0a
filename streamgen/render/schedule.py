"""The loop over items: in which order a process takes them, and when the run is over.

Several processes go over the same items at once. Each begins with its own share and then looks for what the
others have not begun, so that none idles while there is work and the work of a process that died is taken up.
Which process renders an item changes nothing in it.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import Interrupted
from .items import RenderItem
from .runner import ItemRunner, Outcome

_LOOK_SECONDS = 0.5


class RunObserver(Protocol):
    """Told what happens in a run, in order."""

    def begin(self, lengths: Mapping[str, int]) -> None:
        """The run starts: names of the items and the frames of each."""
        ...

    def started(self, item: RenderItem, frames: int) -> None:
        """Rendering of an item begins."""
        ...

    def progress(self, frames: int, item: RenderItem) -> None:
        """So many frames of an item are written."""
        ...

    def settled(self, item: RenderItem, outcome: Outcome) -> None:
        """An item is made, found, or failed."""
        ...

    def waiting(self, items: Sequence[RenderItem]) -> None:
        """What is left is being rendered by other processes."""
        ...


@dataclass(frozen=True)
class Rank:
    """Which of the processes of a launcher (`accelerate launch`, torchrun) this one is.

    Attributes:
        index, count: of all processes.
        local: among those of this machine; the number of its GPU.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of_process(cls) -> "Rank":
        """From the variables that launchers set; alone where there are none or they make no sense."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        try:
            index, count, local = (int(os.environ[name]) for name in names)
        except (KeyError, ValueError):
            return cls()
        return cls(index, count, local) if 0 <= index < count and local >= 0 else cls()

    def order(self, items: Sequence[RenderItem], share_only: bool) -> list[RenderItem]:
        """The items in the order this process takes them: its share, then the others'."""
        own = list(items[self.index :: self.count])
        if share_only:
            return own
        others = [items[at :: self.count] for at in self._others()]
        return own + [item for share in others for item in share]

    def _others(self) -> list[int]:
        return [(self.index + step) % self.count for step in range(1, self.count)]


@dataclass
class Summary:
    """How many items ended how."""

    total: int
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count an item that is settled."""
        self.counts[outcome.status] = self.counts.get(outcome.status, 0) + 1
        if outcome.status in ("failed", "failed before"):
            self.failures.append(outcome)

    @property
    def failed(self) -> int:
        """Items that have no video."""
        return len(self.failures)


def run_items(
    items: Sequence[RenderItem],
    runner: ItemRunner,
    observer: RunObserver,
    stopped: Callable[[], bool],
    after_each: Callable[[], None] = lambda: None,
) -> Summary:
    """Render items until each is settled, by this process or by another one; as many at once as the runner's
    batch has places.

    Args:
        items: in the order to try them.
        stopped: asked between items and while waiting.
        after_each: called after each item that was rendered here.

    Raises:
        OutputError: the folder cannot be written. Interrupted: `stopped` said so.
    """
    summary = Summary(len(items))
    left = list(items)
    while left:
        busy: list[RenderItem] = []
        for item, outcome in _attempts(left, runner, observer, stopped):
            if outcome.status == "busy":
                busy.append(item)
                continue
            summary.add(outcome)
            observer.settled(item, outcome)
            if outcome.status in ("made", "failed"):
                after_each()
        if len(busy) == len(left):
            observer.waiting(busy)
            _pause(stopped)
        left = busy
        runner.folder.manifest.refresh()
    return summary


def _attempts(
    items: Sequence[RenderItem], runner: ItemRunner, observer: RunObserver, stopped: Callable[[], bool]
) -> Iterator[tuple[RenderItem, Outcome]]:
    """An attempt at each item, begun in their order, and what it came to."""
    # threads of a batch speak one at a time
    speaking = threading.Lock()

    def started(item: RenderItem, frames: int) -> None:
        with speaking:
            observer.started(item, frames)

    def attempt(item: RenderItem) -> Outcome:
        if stopped():
            raise Interrupted(f"interrupted before {item.name}")

        def progress(frames: int) -> None:
            with speaking:
                observer.progress(frames, item)

        return runner.attempt(item, started, progress)

    if runner.at_once == 1:
        yield from ((item, attempt(item)) for item in items)
        return
    with ThreadPoolExecutor(runner.at_once, "streamgen-batch") as pool:
        futures = {pool.submit(attempt, item): item for item in items}
        try:
            for future in as_completed(futures):
                outcome = future.result()
                with speaking:
                    yield futures[future], outcome
        except BaseException:
            runner.close()
            raise
        finally:
            for future in futures:
                future.cancel()


def _pause(stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + _LOOK_SECONDS
    while time.monotonic() < end and not stopped():
        time.sleep(0.05)
