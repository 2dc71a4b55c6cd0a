"""What the command line says while it works: bars on a terminal, lines in a log, JSON events for programs.

Bars and lines go to stderr, events to stdout.
"""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..render.items import RenderItem
    from ..render.runner import Outcome

_PLAIN_SECONDS = 5.0
_MOST_NOTES = 1000


def say(text: str) -> None:
    """One line on stderr, whatever is in `text`."""
    print(" ".join(text.split()), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A length of time for people: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@dataclass
class _Work:
    """A clip at work: its frames, those that are written, when it began and was last spoken of."""

    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)


class Reporter:
    """Progress of a run, told as plain lines; also the `RunObserver` of a batch. With `quiet` only notes and
    errors are left.

    Args:
        prefix: put before every line, where several processes write to one log.
        folder: of the videos that are named on stdout.
    """

    def __init__(self, quiet: bool = False, prefix: str = "", folder: Path | None = None) -> None:
        self.quiet, self.prefix, self.folder = quiet, prefix, folder or Path()
        self._items = self._settled = self._frames = self._gone = self._made = 0
        self._lengths: dict[str, int] = {}
        # clips at work by name, the one that was started last behind the others
        self._work: dict[str, _Work] = {}
        self._began = time.monotonic()
        self._waited = False
        self._noted: set[str] = set()

    def say(self, text: str) -> None:
        """A line that --quiet leaves out."""
        if not self.quiet:
            say(self.prefix + text)

    def note(self, text: str) -> None:
        """Something the user should know though it is no error."""
        say(f"{self.prefix}note: {text}")

    def result(self, path: object) -> None:
        """A finished video: data, for stdout."""
        print(path, flush=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While a run lasts."""
        yield

    def begin(self, lengths: Mapping[str, int]) -> None:
        """A run of items with so many frames each."""
        self._lengths, self._began = dict(lengths), time.monotonic()
        self._items, self._frames = len(lengths), sum(lengths.values())

    def started(self, item: "RenderItem", frames: int) -> None:
        """An item begins."""
        self.clip_started(f"{item.name}.mp4", frames)

    def clip_started(self, name: str, frames: int) -> None:
        """A clip begins."""
        self._work[name] = _Work(frames)
        self.say(f"{name}: rendering {frames} frames")

    def progress(self, frames: int, item: "RenderItem | None" = None) -> None:
        """So many frames are written of an item at work; without one, of the clip."""
        name, work = self._at(frames, item)
        now = time.monotonic()
        if now - work.said >= _PLAIN_SECONDS:
            work.said = now
            left = self.left_seconds()
            rest = "" if left is None else f", {duration(left)} left"
            self.say(f"{name}: {frames}/{work.total} frames{rest}")

    def _at(self, frames: int, item: "RenderItem | None") -> tuple[str, "_Work"]:
        """The name and the work of a clip that has come to so many frames."""
        name = next(reversed(self._work), "") if item is None else f"{item.name}.mp4"
        work = self._work.setdefault(name, _Work(0))
        work.done = frames
        return name, work

    def settled(self, item: "RenderItem", outcome: "Outcome") -> None:
        """An item is made, found, or failed."""
        self._settled += 1
        entry = outcome.entry
        self._gone += self._lengths.get(item.name, entry.frames if entry is not None else 0)
        self._work.pop(f"{item.name}.mp4", None)
        self._waited = False
        for note in outcome.notes:
            # 10,000 prompts with the same unknown word are one piece of news
            if note not in self._noted and len(self._noted) < _MOST_NOTES:
                self._noted.add(note)
                self.note(note)
        place = f"[{self._settled}/{self._items}] "
        line = f"line {item.job.line}: " if item.job.line else ""
        if outcome.status == "made" and entry is not None:
            self._made += entry.frames
            self.result(self.folder / str(entry.file))
            left = self.left_seconds()
            rest = "" if left is None or self._settled == self._items else f", {duration(left)} left"
            rate = entry.frames / max(entry.seconds, 1e-9)
            took = f"{entry.frames} frames in {duration(entry.seconds)} ({rate:.1f} fps)"
            self.say(f"{place}{entry.file}: {took}{rest}")
        elif outcome.status == "there" and entry is not None:
            self.say(f"{place}{entry.file}: is there")
        elif outcome.status == "failed before" and entry is not None:
            self.failure(f"{line}{item.name}: failed before: {entry.error} (--retry-failed tries again)")
        elif entry is not None:
            self.failure(f"{line}{item.name}: {entry.error}")

    def failure(self, text: str) -> None:
        """An item that has no video."""
        say(f"{self.prefix}error: {text}")

    def waiting(self, items: Sequence["RenderItem"]) -> None:
        """Other processes are at what is left."""
        if not self._waited:
            self._waited = True
            count = f"{len(items)} item{'s' if len(items) > 1 else ''}"
            self.say(f"waiting for {count} that other processes render")

    def left_seconds(self) -> float | None:
        """Time left at the pace of this run; None before there is one."""
        current = sum(work.done for work in self._work.values())
        elapsed = time.monotonic() - self._began
        if self._made + current == 0 or elapsed < 0.5:
            return None
        return max(self._frames - self._gone - current, 0) * elapsed / (self._made + current)

    def finished(self, record: Mapping[str, Any]) -> None:
        """One line about a finished clip."""
        timings = record["timings"]
        rate = record["frames"] / timings["wall"]
        self.say(
            f"{record['video']}: {record['frames']} frames in {timings['wall']:.1f} s "
            f"({rate:.1f} fps, {timings['realtime_factor']:.2f} x real time)"
        )

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run is over."""
        failed = summary["failed"]
        parts = [f"{summary[name]} {word}" for name, word in _WORDS if summary[name]]
        took = f" in {duration(time.monotonic() - self._began)}"
        self.say(f"{summary['items']} items: {', '.join(parts) or 'none'}{took}")
        if failed and self.quiet:
            say(f"{self.prefix}{failed} of {summary['items']} items failed")


_WORDS = (("made", "made"), ("there", "were there"), ("failed", "failed"))


class BarReporter(Reporter):
    """A bar for each item at work and one for the whole run, on a terminal."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder=folder)
        self._bars: Progress | None = None
        self._overall: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        """A line above the bars."""
        if self._bars is not None:
            self._bars.console.print(" ".join(text.split()), markup=False, highlight=False)
        else:
            say(text)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Shows the bars."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} frames"),
            TextColumn("{task.fields[left]}"),
        )
        # what goes to stdout stays there, unless that is the same terminal
        same = sys.stdout.isatty()
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, redirect_stdout=same) as bars:
            self._bars = bars
            try:
                yield
            finally:
                self._bars = self._overall = None
                self._tasks = {}

    def begin(self, lengths: Mapping[str, int]) -> None:
        """Adds the bar of the whole run."""
        super().begin(lengths)
        if self._bars is not None and self._items > 1:
            self._overall = self._bars.add_task(f"0/{self._items}", total=self._frames, left="")

    def clip_started(self, name: str, frames: int) -> None:
        """Starts the bar of a clip."""
        self._work[name] = _Work(frames)
        if self._bars is not None:
            self._tasks[name] = self._bars.add_task(name[:48], total=frames, left="")

    def progress(self, frames: int, item: "RenderItem | None" = None) -> None:
        """Moves the bars."""
        name, work = self._at(frames, item)
        if self._bars is None:
            return
        if name in self._tasks:
            rate = frames / max(time.monotonic() - work.began, 1e-6)
            rest = (work.total - frames) / rate
            text = f"{rate:.1f} fps, {duration(rest)} left"
            self._bars.update(self._tasks[name], completed=frames, left=text)
        self._show_overall()

    def settled(self, item: "RenderItem", outcome: "Outcome") -> None:
        """Says what became of the item, unless it was there: 10,000 of those are no news."""
        task = self._tasks.pop(f"{item.name}.mp4", None)
        if task is not None and self._bars is not None:
            self._bars.remove_task(task)
        if outcome.status == "there" and outcome.entry is not None:
            self._settled += 1
            self._gone += outcome.entry.frames
        else:
            super().settled(item, outcome)
        self._show_overall()

    def failure(self, text: str) -> None:
        """A line above the bars."""
        self.say(f"error: {text}")

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.say(f"note: {text}")

    def _show_overall(self) -> None:
        if self._bars is not None and self._overall is not None:
            left = self.left_seconds()
            current = sum(work.done for work in self._work.values())
            self._bars.update(
                self._overall,
                description=f"{self._settled}/{self._items}",
                completed=min(self._gone + current, self._frames),
                left="" if left is None else f"{duration(left)} left",
            )


class EventReporter(Reporter):
    """JSON events on stdout, one a line: begin, start, progress, item, waiting, note, end."""

    def emit(self, event: str, **values: object) -> None:
        """One event."""
        print(json.dumps({"event": event, **values}, ensure_ascii=False), flush=True)

    def say(self, text: str) -> None:
        """Events say it."""

    def note(self, text: str) -> None:
        """An event."""
        self.emit("note", text=text)

    def result(self, path: object) -> None:
        """The item's event names it."""

    def begin(self, lengths: Mapping[str, int]) -> None:
        """An event."""
        super().begin(lengths)
        self.emit("begin", items=self._items, frames=self._frames)

    def clip_started(self, name: str, frames: int) -> None:
        """An event."""
        super().clip_started(name, frames)
        self.emit("start", file=name, frames=frames)

    def progress(self, frames: int, item: "RenderItem | None" = None) -> None:
        """An event."""
        name, work = self._at(frames, item)
        left = self.left_seconds()
        self.emit(
            "progress",
            file=name,
            frames=frames,
            of=work.total,
            left_seconds=None if left is None else round(left, 1),
        )

    def settled(self, item: "RenderItem", outcome: "Outcome") -> None:
        """An event."""
        super().settled(item, outcome)
        entry = outcome.entry
        self.emit(
            "item",
            status=outcome.status.replace(" ", "_"),
            name=item.name,
            index=item.job.index,
            line=item.job.line,
            seed=item.job.seed,
            file=None if entry is None else entry.file,
            frames=0 if entry is None else entry.frames,
            seconds=0.0 if entry is None else entry.seconds,
            error=None if entry is None else entry.error,
        )

    def failure(self, text: str) -> None:
        """The item's event says it."""

    def waiting(self, items: Sequence["RenderItem"]) -> None:
        """An event."""
        if not self._waited:
            self._waited = True
            self.emit("waiting", items=len(items))

    def finished(self, record: Mapping[str, Any]) -> None:
        """An event with the whole record."""
        self.emit("finished", record=record)

    def end(self, summary: Mapping[str, Any]) -> None:
        """An event."""
        self.emit("end", **summary)


def reporter_for(quiet: bool, as_json: bool, prefix: str = "", folder: Path | None = None) -> Reporter:
    """Events with --json, else bars on a terminal and lines in a log."""
    if as_json:
        return EventReporter(quiet, prefix, folder)
    if not quiet and not prefix and sys.stderr.isatty():
        return BarReporter(folder)
    return Reporter(quiet, prefix, folder)


@contextlib.contextmanager
def shown_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Something that is told how many parts of a work are done, of how many, and which one comes: a bar on a
    terminal, lines in a log, nothing where nothing is told.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, label: say(f"{title}: {done} of {total}{label and f', {label}'}")
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: list[TaskID] = []

        def show(done: int, total: int, label: str) -> None:
            if not tasks:
                tasks.append(bars.add_task(title, total=total))
            bars.update(tasks[0], completed=done, description=f"{title}, {label}" if label else title)

        yield show


class Stop:
    """Makes a flag of the first Ctrl-C or SIGTERM, so that a chunk is finished; a second stops at once."""

    def __init__(self) -> None:
        self._asked = False
        # several processes that compute one clip ask each other
        self.ask: Callable[[], bool] = self.was_asked

    def __call__(self) -> bool:
        return self.ask()

    def was_asked(self) -> bool:
        """Whether this process was asked to stop."""
        return self._asked

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts a signal sets the flag. Outside of the main thread signals are none of ours."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
