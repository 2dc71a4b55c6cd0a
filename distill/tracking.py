"""Where a run's numbers go: one-line log, progress bar on a terminal, metrics.jsonl, TensorBoard."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .config import RunConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Records the metrics of the main process; with `enabled` False every method does nothing.

    `run_dir/metrics.jsonl` gets one object per log line ("train") and per preview ("preview").
    """

    def __init__(self, config: RunConfig, run_dir: Path, enabled: bool) -> None:
        self._config = config
        self._run_dir = run_dir
        self._enabled = enabled
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._since = time.monotonic()
        self._steps = 0
        self._writer: SummaryWriter | None = None
        self._progress: Progress | None = None

    def __enter__(self) -> "Tracker":
        if not self._enabled:
            return self
        if self._config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._run_dir / "tensorboard"))
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            from rich.console import Console

            self._progress = Progress(*columns, console=Console(stderr=True))
            self._progress.add_task(self._config.stage, total=1000)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def say(self, line: str) -> None:
        """One line on stderr."""
        if self._enabled:
            if self._progress is not None:
                self._progress.console.print(line, markup=False, highlight=False)
            else:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()

    def record(self, step: int, metrics: Mapping[str, float], minutes: float, progress: float) -> None:
        """Add one update's metrics; every `log_every` steps their means are written."""
        if not self._enabled:
            return
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1
        self._steps += 1
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=round(1000 * progress))
        if step % self._config.log_every == 0:
            means = {key: total / self._counts[key] for key, total in self._sums.items()}
            means["seconds_per_step"] = (time.monotonic() - self._since) / self._steps
            self._write("train", step, means, minutes)
            self._sums, self._counts, self._steps, self._since = {}, {}, 0, time.monotonic()

    def preview(self, step: int, metrics: Mapping[str, float], out_dir: Path, minutes: float) -> None:
        """Write a preview's metrics and show the PNG files in `out_dir`."""
        if not self._enabled:
            return
        self._write("preview", step, metrics, minutes)
        if self._writer is not None:
            for path in sorted(out_dir.glob("*.png")):
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                self._writer.add_image(path.stem, pixels, step, dataformats="HWC")
            self._writer.flush()
        self._since, self._steps, self._sums, self._counts = time.monotonic(), 0, {}, {}

    def _write(self, kind: str, step: int, metrics: Mapping[str, float], minutes: float) -> None:
        body = " ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        self.say(f"{kind} step {step} min {minutes:.2f} {body}")
        row = {"kind": kind, "step": step, "minutes": minutes, **metrics}
        with open(self._run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for key, value in metrics.items():
                self._writer.add_scalar(f"{kind}/{key}", value, step)
