"""Where a run's numbers go: one-line log, progress bar on a terminal, metrics.jsonl, plots, trackers."""

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from streamgen.structured import to_plain

from .command import say
from .config import RunConfig
from .plots import write_plots
from .progress import TimeLeft, describe
from .trackers import Sink, identify, open_sink

METRICS_FILE = "metrics.jsonl"
#: Metrics with this prefix are recorded and plotted, but too many for a line.
_IN_FILES = "seen/"


class Tracker:
    """Records the metrics of the main process; with `enabled` False every method does nothing.

    `run_dir/metrics.jsonl` gets one object per log line ("train") and per preview ("preview"). `step` and
    `minutes` are where this session begins.
    """

    def __init__(
        self, config: RunConfig, run_dir: Path, enabled: bool, step: int = 0, minutes: float = 0.0
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._enabled = enabled
        self._first_step = step
        self._left = TimeLeft(config.max_steps, config.max_minutes, step, minutes)
        self._values: dict[str, list[Tensor]] = {}
        self._since = time.monotonic()
        self._steps = 0
        self._sinks: list[Sink] = []
        self._progress: Progress | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Tracker":
        if not self._enabled:
            return self
        with ExitStack() as stack:
            if self._config.trackers:
                identity = identify(self._run_dir, self._first_step > 0, to_plain(self._config))
                for name in self._config.trackers:
                    sink = open_sink(name, identity)
                    stack.callback(sink.close)
                    self._sinks.append(sink)
            if sys.stderr.isatty():
                columns = (
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TextColumn("left {task.fields[left]}"),
                )
                self._progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
                self._progress.add_task(
                    self._config.stage, total=self._config.max_steps, completed=self._first_step, left="?"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def say(self, line: str) -> None:
        """One line on stderr."""
        if self._enabled:
            if self._progress is not None:
                self._progress.console.print(line, markup=False, highlight=False)
            else:
                say(line)

    def record(self, step: int, metrics: Mapping[str, Tensor], minutes: float, progress: float) -> None:
        """Add one update's metrics, scalars on any device; every `log_every` steps their means are written,
        those that are numbers.

        `progress` in [0, 1] is the spent part of the budget, which the bar shows.
        """
        if not self._enabled:
            return
        for key, value in metrics.items():
            self._values.setdefault(key, []).append(value)
        self._steps += 1
        left = describe(self._left.minutes(step, minutes))
        if self._progress is not None:
            # in a run that ends by time the bar's end is the step that this pace leads to
            total = round(step / progress) if progress > 0 else None
            self._progress.update(self._progress.task_ids[0], completed=step, total=total, left=left)
        if step % self._config.log_every == 0:
            means = {key: float(torch.stack(values).nanmean()) for key, values in self._values.items()}
            means = {key: value for key, value in means.items() if not math.isnan(value)}
            means["seconds_per_step"] = (time.monotonic() - self._since) / self._steps
            self._write("train", step, means, minutes, f" left {left}")
            self._restart()

    def preview(self, step: int, metrics: Mapping[str, float], out_dir: Path, minutes: float) -> None:
        """Write a preview's metrics, show the PNG files in `out_dir`, and draw the curves anew."""
        if not self._enabled:
            return
        self._write("preview", step, metrics, minutes)
        for sink in self._sinks:
            sink.pictures(sorted(out_dir.glob("*.png")), step)
        self.plot()
        self._restart()

    def plot(self) -> None:
        """Draw the curves of the run so far into `run_dir/plots`."""
        if not self._enabled:
            return
        try:
            write_plots(self._run_dir / METRICS_FILE, self._run_dir / "plots")
        except ImportError:
            self.say("no plots: matplotlib is not installed (pip install 'streamgen[train]')")

    def _restart(self) -> None:
        self._since, self._steps, self._values = time.monotonic(), 0, {}

    def _write(
        self, kind: str, step: int, metrics: Mapping[str, float], minutes: float, note: str = ""
    ) -> None:
        shown = {key: value for key, value in metrics.items() if not key.startswith(_IN_FILES)}
        body = " ".join(f"{key} {value:.4g}" for key, value in shown.items())
        self.say(f"{kind} step {step} min {minutes:.2f}{note} {body}")
        row = {"kind": kind, "step": step, "minutes": minutes, **metrics}
        with open(self._run_dir / METRICS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for sink in self._sinks:
            sink.scalars({f"{kind}/{key}": value for key, value in metrics.items()}, step)
