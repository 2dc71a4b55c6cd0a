"""What the command line says while it works, all on stderr: a bar on a terminal, plain lines elsewhere."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 5.0


def say(text: str) -> None:
    """One line on stderr, whatever is in `text`."""
    print(" ".join(text.split()), file=sys.stderr, flush=True)


class Reporter:
    """Progress of clips. With `quiet` only notes and errors are left."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._name, self._total, self._began, self._said = "", 0, 0.0, 0.0

    def note(self, text: str) -> None:
        """Something the user should know though it is no error."""
        say(f"note: {text}")

    @contextlib.contextmanager
    def clip(self, name: str, frames: int) -> Iterator[None]:
        """Shows the progress of one clip that `progress` is told about."""
        self._name, self._total = name, frames
        self._began = self._said = time.monotonic()
        if self.quiet:
            yield
        elif sys.stderr.isatty():
            from rich.console import Console

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} frames, {task.fields[fps]:.1f} fps"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
                self._bar, self._task = bar, bar.add_task(name, total=frames, fps=0.0)
                try:
                    yield
                finally:
                    self._bar = None
        else:
            say(f"{name}: rendering {frames} frames")
            yield

    def progress(self, done: int) -> None:
        """Told the number of frames written."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, fps=done / max(now - self._began, 1e-6))
        elif not self.quiet and now - self._said >= _PLAIN_SECONDS:
            self._said = now
            say(f"{self._name}: {done}/{self._total} frames")

    def finished(self, record: Mapping[str, Any]) -> None:
        """One line about a finished clip."""
        if self.quiet:
            return
        timings = record["timings"]
        rate = record["frames"] / timings["wall"]
        say(
            f"{record['video']}: {record['frames']} frames in {timings['wall']:.1f} s "
            f"({rate:.1f} fps, {timings['realtime_factor']:.2f} x real time)"
        )


class Stop:
    """Turns the first Ctrl-C into a flag, so that a chunk in work is finished; a second stops at once."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts Ctrl-C sets the flag."""
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
