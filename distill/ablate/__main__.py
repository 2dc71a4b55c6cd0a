"""Ablations: `python -m distill.ablate GRID.yaml -o FOLDER`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ..command import check_processes, ended, out_folder, say
from ..signals import SIGNAL_EXIT


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m distill.ablate",
        description="Train and judge the cells of a grid in equal budgets, and hold them against each other: "
        "figures with intervals, what is decided and what is not, and the smallest difference that would "
        "have been found. Goes on where it was stopped; a cell that fails leaves the others alone.",
    )
    parser.add_argument("grid", help="a grid, such as configs/ablations/objectives.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="of all cells: STAGE.key=value, such as self_forcing.max_minutes=3, evaluate.prompts=32, "
        "settings.steps=2",
    )
    parser.add_argument("-o", "--out", required=True, help="folder of the cells and the table")
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time")
    parser.add_argument("--table", action="store_true", help="make the table of what is there, run nothing")
    return parser.parse_intermixed_args(list(arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 some cells failed, 2 bad input, 130 or 143."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return ended(lambda: _ablate(options), "interrupted: the same command goes on")


def _ablate(options: argparse.Namespace) -> int:
    # Imported late, so that usage errors answer at once.
    from .cells import Runner
    from .grid import read_grid
    from .table import write_table

    check_processes(options.jobs, "--jobs")
    path = Path(options.grid)
    grid = read_grid(path, options.overrides)
    out = out_folder(options.out)
    signal.signal(signal.SIGTERM, _stop)
    results = []
    for result in () if options.table else Runner(grid, path.parent, out.resolve(), options.jobs).run():
        results.append(result)
        how = f"failed: {result.error}" if result.error else "done"
        spent = "" if result.seconds is None else f" in {result.seconds / 60:.1f} min"
        say(f"{result.cell.title}: {how}{spent}")
        write_table(grid, out.resolve(), results)
    cells = write_table(grid, out.resolve(), results)
    sys.stdout.write((out / "table.md").read_text(encoding="utf-8"))
    say(f"table: {out / 'index.html'}")
    failed = any(result.error for result in results) or (
        not options.table and any(cell.error for cell in cells)
    )
    return int(failed)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """End as by Ctrl-C, with the signal's own code; running cells save first."""
    raise SystemExit(SIGNAL_EXIT[signal.Signals(number)])


if __name__ == "__main__":
    raise SystemExit(main())
