"""Cells of a grid, one process after the other: trainings, then what judges them. All of it is resumed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config import ConfigError
from .grid import CellConfig, Grid, GridStage

SHARED = "shared"
REPORT = "report"
READERS = "readers.safetensors"
_PLAN, _LOG = "plan.json", "log.txt"
#: `(module, arguments)` to the command line of a process.
Command = Callable[[str, Sequence[str]], list[str]]


def python_command(module: str, arguments: Sequence[str]) -> list[str]:
    """`python -m module arguments`."""
    return [sys.executable, "-m", module, *arguments]


@dataclass(frozen=True)
class Cell:
    """A cell trained with one seed, in a folder of its own; `name` is `SHARED` for what all begin with."""

    name: str
    seed: int
    folder: Path

    @property
    def report(self) -> Path:
        """Where its evaluation is."""
        return self.folder / REPORT

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class Step:
    """A process of a cell: arguments of a module, and the file that is there when it is done."""

    module: str
    arguments: tuple[str, ...]
    leaves: Path

    @property
    def is_done(self) -> bool:
        """Whether what it leaves is there."""
        return any(self.leaves.parent.glob(self.leaves.name))


def cells_of(grid: Grid, out: Path) -> list[Cell]:
    """Cells in the order of their trainings: what all share first, then seed after seed, so that a grid that
    is cut short has compared all cells on as many seeds as it could.
    """
    names = [SHARED] if any(stage.shared for stage in grid.stages) else []
    return [
        Cell(name, seed, out / name / f"seed-{seed}") for seed in grid.seeds for name in (*names, *grid.cells)
    ]


def steps_of(grid: Grid, place: Path, cell: Cell, out: Path) -> list[Step]:
    """What is to be run for a cell; `place` is the folder of the grid's file."""
    shared = cell.name == SHARED
    config = CellConfig() if shared else grid.cells[cell.name]
    exports = {
        stage.name: out
        / (SHARED if stage.shared else cell.name)
        / f"seed-{cell.seed}"
        / stage.name
        / "export"
        for stage in grid.stages
        if config.trains(stage)
    }
    steps = [
        _training(stage, place, cell, config, exports)
        for stage in grid.stages
        if stage.shared == shared and config.trains(stage)
    ]
    return steps if shared else [*steps, _judging(grid, cell, config, list(exports.values()), out)]


def _training(
    stage: GridStage, place: Path, cell: Cell, config: CellConfig, exports: dict[str, Path]
) -> Step:
    own = [o.partition(".")[2] for o in config.overrides if o.partition(".")[0] == stage.name]
    given = [f"run_dir={cell.folder / stage.name}", f"seed={cell.seed}", *stage.overrides, *own]
    for number, override in enumerate(given):
        key, _, value = override.partition("=")
        if value.startswith("@"):
            if value[1:] not in exports:
                raise ConfigError(
                    f"override {override!r}: expected an earlier stage, one of {', '.join(exports)}"
                )
            given[number] = f"{key}={exports[value[1:]]}"
    config_file = str((place / stage.config).resolve())
    return Step("distill", (config_file, *given), cell.folder / stage.name / "export" / "*.safetensors")


def _judging(grid: Grid, cell: Cell, config: CellConfig, exports: list[Path], out: Path) -> Step:
    # what the readers learn is the same for all cells
    what = ("--readers", str(out / READERS), *grid.evaluate, *config.evaluate)
    if grid.judge == "tokenizer":
        arguments = ("--tokenizer", str(exports[-1]), "-o", str(cell.report), *what)
        return Step("distill.evaluate", arguments, cell.report / "tokenizers.json")
    model = str(exports[-1]) if exports else str(grid.model)
    settings = [part for setting in grid.settings_of(cell.name) for part in ("--set", setting)]
    arguments = ("--model", model, "-o", str(cell.report), "--processes", "1", *settings, *what)
    return Step("distill.evaluate", arguments, cell.report / "report.json")


@dataclass(frozen=True)
class Result:
    """How a cell ended: `error` is what its process said last, None where all went well; None for `seconds`
    where there was nothing left to do.
    """

    cell: Cell
    seconds: float | None
    error: str | None = None


class Runner:
    """Runs cells, several at once; a cell that fails leaves the others alone. `place` is the folder of the
    grid's file, `command` says how a module is started.
    """

    def __init__(
        self, grid: Grid, place: Path, out: Path, jobs: int = 1, command: Command = python_command
    ) -> None:
        self.grid, self.place, self.out, self.jobs, self.command = grid, place, out, jobs, command
        self._running: list[
            tuple[Cell, Iterator[subprocess.Popen[bytes]], subprocess.Popen[bytes], float]
        ] = []

    def run(self) -> Iterator[Result]:
        """Results as cells end. What all share comes first; where that fails, its seed's cells fail, too."""
        waiting = [
            (cell, steps_of(self.grid, self.place, cell, self.out)) for cell in cells_of(self.grid, self.out)
        ]
        for cell, steps in waiting:
            _check_plan(cell, steps)
        failed: set[int] = set()
        try:
            while waiting or self._running:
                shared = {cell.seed for cell, *_ in self._running if cell.name == SHARED}
                ready = [entry for entry in waiting if entry[0].seed not in shared]
                if ready and len(self._running) < self.jobs:
                    cell, steps = ready[0]
                    waiting.remove(ready[0])
                    if cell.seed in failed:
                        yield Result(cell, None, "what all cells share has failed")
                    elif not self._start(cell, steps):
                        yield Result(cell, None)
                    continue
                for result in self._ended():
                    if result.error is not None and result.cell.name == SHARED:
                        failed.add(result.cell.seed)
                    yield result
                time.sleep(0.1)
        finally:
            self._stop()

    def _start(self, cell: Cell, steps: list[Step]) -> bool:
        """Start a cell's first process; false where all are done."""
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / _PLAN).write_text(_plan(steps), encoding="utf-8")
        processes = self._processes(cell, steps)
        first = next(processes, None)
        if first is None:
            return False
        self._running.append((cell, processes, first, time.monotonic()))
        return True

    def _processes(self, cell: Cell, steps: list[Step]) -> Iterator[subprocess.Popen[bytes]]:
        """A process for each step that is not done."""
        for step in steps:
            if not step.is_done:
                with open(cell.folder / _LOG, "ab") as log:
                    yield subprocess.Popen(self.command(step.module, step.arguments), stdout=log, stderr=log)

    def _ended(self) -> Iterator[Result]:
        for entry in list(self._running):
            cell, processes, process, began = entry
            code = process.poll()
            if code is None:
                continue
            self._running.remove(entry)
            if code:
                yield Result(cell, time.monotonic() - began, _reason(cell, code))
                continue
            following = next(processes, None)
            if following is None:
                yield Result(cell, time.monotonic() - began)
            else:
                self._running.append((cell, processes, following, began))

    def _stop(self) -> None:
        """Let what runs save, and wait for it."""
        for _, _, process, _ in self._running:
            process.terminate()
        for _, _, process, _ in self._running:
            process.wait()


def _plan(steps: Sequence[Step]) -> str:
    return json.dumps([asdict(step) for step in steps], default=str, indent=1) + "\n"


def _check_plan(cell: Cell, steps: Sequence[Step]) -> None:
    """A folder of another grid, or of the grid as it was, is not gone on with."""
    file = cell.folder / _PLAN
    if file.exists() and file.read_text(encoding="utf-8") != _plan(steps):
        raise ConfigError(
            f"{cell.folder}: expected the cell as the grid has it, found one of other overrides ({file}); "
            "remove it or give another folder"
        )


def _reason(cell: Cell, code: int) -> str:
    """Why a process ended with an exit code, in its own last words unless it was killed before any."""
    if code < 0:
        memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"
    text = (cell.folder / _LOG).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with {code}"
