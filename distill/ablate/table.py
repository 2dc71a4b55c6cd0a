"""From the cells' reports to a table: figures with intervals, and whether each is decided."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamgen.errors import InputError
from streamgen.structured import to_plain

from ..evaluation.figures import figures_of, models_compared
from ..evaluation.intervals import Figure
from ..evaluation.page import Picture, Section, Table, markdown, write_page
from ..evaluation.rows import Row, checked_rows
from ..evaluation.streams import POLICIES
from ..evaluation.tokenizer import tokenizers_apart
from ..plots import panels
from .cells import Cell, Result, cells_of
from .grid import Claim, Grid

ROWS = "cells.jsonl"
#: Of these less is better.
_LESS = ("track_error", "switch_seconds", "switch_hop", "seam")
#: A difference of this many standard errors is found in four of five tries (at 5 % two-sided).
_FOUND = 1.959963984540054 + 0.8416212335729143
_SEED_STRIDE = 1_000_000
_NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Against:
    """A figure of a cell against another cell's on equal streams: their difference with its interval, how
    many pairs, what is `decided` (better, worse or undecided), and the smallest difference that so many
    pairs would have shown in four of five tries.
    """

    difference: float
    low: float
    high: float
    n: int
    decided: str
    smallest: float


@dataclass(frozen=True)
class Judged:
    """A cell over all its seeds that ended well: figures, and against the reference those that can be
    compared; `error` where none did.
    """

    name: str
    seeds: tuple[int, ...]
    figures: Mapping[str, Figure]
    against: Mapping[str, Against]
    error: str | None = None


def judged_cells(grid: Grid, out: Path, results: Mapping[tuple[str, int], Result]) -> list[Judged]:
    """What the cells' reports say, in the grid's order."""
    known = {name: _seeds(grid, out, name, results) for name in grid.cells}
    found = []
    for name, cells in known.items():
        if not cells:
            errors = [r.error for (cell, _), r in results.items() if cell == name and r.error]
            found.append(Judged(name, (), {}, {}, errors[0] if errors else _NOT_RUN))
            continue
        figures = _figures(grid, cells)
        reference = known[grid.reference]
        against = {} if name == grid.reference or not reference else compare(grid, reference, cells)
        found.append(Judged(name, tuple(cell.seed for cell in cells), figures, against))
    return found


def compare(grid: Grid, first: Sequence[Cell], second: Sequence[Cell]) -> dict[str, Against]:
    """The figures of `second` against those of `first`, on the seeds and streams that both have."""
    if grid.judge == "tokenizer":
        return {name: _apart(name, first, second) for name in grid.figures}
    pairs = models_compared(*(_pooled(cells) for cells in (first, second)))
    return {
        row["figure"]: _against(row["figure"], row["difference"], row["low"], row["high"], row["n"])
        for row in pairs
    }


def verdict(claim: Claim, against: Mapping[str, Against]) -> str:
    """Whether a claim is found again, in words; `against` is the better cell's against the worse one's."""
    if claim.figure not in against:
        return "not measured"
    one = against[claim.figure]
    word = {"better": "as published", "worse": "the other way round", "undecided": "undecided"}[one.decided]
    return (
        f"{word}: {one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}], {one.n} pairs; "
        f"{one.smallest:.3f} would have been found"
    )


def write_table(grid: Grid, out: Path, results: Sequence[Result]) -> list[Judged]:
    """Write `cells.jsonl`, `table.md`, `index.html` and `figures.png` to `out`; returns what they show."""
    by_cell = {(result.cell.name, result.cell.seed): result for result in results}
    cells = judged_cells(grid, out, by_cell)
    lines = [
        {
            "cell": result.cell.name,
            "seed": result.cell.seed,
            "seconds": result.seconds,
            "error": result.error,
            **_training(result.cell),
        }
        for result in results
    ]
    with open(out / ROWS, "w", encoding="utf-8") as file:
        for line in [*lines, *({"cell": cell.name} | to_plain(cell) for cell in cells)]:
            file.write(json.dumps(line) + "\n")
    table = Table(["", "seeds", *grid.figures], [_line(grid, cell) for cell in cells])
    differences = Table(
        ["", "figure", f"against {grid.reference}", "pairs", "decided", "would have been found"],
        [row for cell in cells for row in _differences(grid, cell)],
    )
    claims = Table(["claim", "source", "found"], _claims(grid, out, by_cell))
    parts = [table, differences, *([claims] if grid.claims else [])]
    (out / "table.md").write_text("\n".join(markdown(part) for part in parts), encoding="utf-8")
    _plot(grid, cells, out / "figures.png")
    sections = [Section("", [parts[0], Picture("figures.png")]), Section("Differences", [differences])]
    if grid.claims:
        sections.append(Section("Claims", [claims]))
    write_page(out / "index.html", grid.title, sections)
    return cells


def _claims(grid: Grid, out: Path, results: Mapping[tuple[str, int], Result]) -> list[list[str]]:
    rows = []
    for claim in grid.claims:
        better, worse = (_seeds(grid, out, name, results) for name in (claim.better, claim.worse))
        against = compare(grid, worse, better) if better and worse else {}
        what = f"{claim.figure}: {claim.better} over {claim.worse}"
        rows.append([what, claim.source, verdict(claim, against)])
    return rows


def _seeds(grid: Grid, out: Path, name: str, results: Mapping[tuple[str, int], Result]) -> list[Cell]:
    """A cell's trainings whose reports are there."""
    file = "tokenizers.json" if grid.judge == "tokenizer" else "report.json"
    cells = [cell for cell in cells_of(grid, out) if cell.name == name and (cell.report / file).exists()]
    return [cell for cell in cells if (done := results.get((name, cell.seed))) is None or done.error is None]


def _pooled(cells: Sequence[Cell]) -> list[Row]:
    """The rows of several trainings; a stream's seed tells, too, by which training seed it was made. Switches
    under the policy of a cell have the name that they have under the usual one, which they are held against.
    """
    pooled = []
    for cell in cells:
        about, rows = checked_rows(cell.report)
        for row in rows:
            own = row.suite == "switches" and row.variant == about.config.get("policy")
            variant = POLICIES[0] if own else row.variant
            pooled.append(replace(row, variant=variant, seed=row.seed + _SEED_STRIDE * cell.seed))
    return pooled


def _figures(grid: Grid, cells: Sequence[Cell]) -> dict[str, Figure]:
    if grid.judge == "streams":
        found = figures_of(_pooled(cells))
        return {name: found[name] for name in grid.figures}
    figures: dict[str, Figure] = {}
    for cell in cells[:1]:
        row = _tokenizer(cell)
        for name in grid.figures:
            low, high = row["intervals"][name]
            figures[name] = Figure(row[name], low, high, row["clips"])
    return figures


def _apart(name: str, first: Sequence[Cell], second: Sequence[Cell]) -> Against:
    """A figure of tokenizers over the clips and the seeds that both have."""
    sides: list[list[list[float]]] = [[], []]
    seeds = {cell.seed for cell in first} & {cell.seed for cell in second}
    for side, cells in zip(sides, (first, second), strict=True):
        for cell in sorted((cell for cell in cells if cell.seed in seeds), key=lambda cell: cell.seed):
            side += _tokenizer(cell)["by_clip"][name]
    found = tokenizers_apart(name, *sides)
    assert found.value is not None
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    return _against(name, found.value, low, high, found.n)


def _tokenizer(cell: Cell) -> dict[str, Any]:
    """What was measured of a cell's tokenizer."""
    file = cell.report / "tokenizers.json"
    (row,) = json.loads(file.read_text(encoding="utf-8"))
    if "by_clip" not in row:
        raise InputError(f"{file}: expected what was found clip by clip (by_clip); remove it to judge again")
    return dict(row)


def _against(name: str, difference: float, low: float, high: float, n: int) -> Against:
    less = any(part in name for part in _LESS)
    up, down = ("worse", "better") if less else ("better", "worse")
    decided = up if low > 0 else down if high < 0 else "undecided"
    error = (high - low) / 2 / 1.959963984540054
    # pairs that all agree have no spread to go by: up to three in n may differ and none of n show it
    smallest = _FOUND * error if error > 0 else 3 / n
    return Against(difference, low, high, n, decided, smallest)


def _training(cell: Cell) -> dict[str, Any]:
    """Minutes and updates of a cell's trainings, by stage."""
    found: dict[str, Any] = {}
    for file in sorted(cell.folder.glob("*/metrics.jsonl")):
        last = file.read_text(encoding="utf-8").splitlines()[-1:]
        if last:
            values = json.loads(last[0])
            found[file.parent.name] = {"minutes": values.get("minutes"), "updates": values.get("step")}
    return {"trained": found}


def _line(grid: Grid, cell: Judged) -> list[Any]:
    if cell.error is not None:
        how = cell.error if cell.error == _NOT_RUN else f"failed: {cell.error}"
        return [cell.name, how, *("-" for _ in grid.figures)]
    return [cell.name, len(cell.seeds), *(cell.figures[name] for name in grid.figures)]


def _differences(grid: Grid, cell: Judged) -> list[list[Any]]:
    rows = []
    for name in grid.figures:
        if (one := cell.against.get(name)) is not None:
            bounds = f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
            rows.append([cell.name, name, bounds, one.n, one.decided, f"{one.smallest:.3f}"])
    return rows


def _plot(grid: Grid, cells: Sequence[Judged], path: Path) -> None:
    """Every figure of every cell with its interval."""
    canvas, axes = panels(2.6 * len(grid.figures), 0.5 + 0.35 * len(cells), len(grid.figures))
    names = [cell.name for cell in cells]
    for axis, figure in zip(axes, grid.figures, strict=True):
        for place, cell in enumerate(cells):
            found = cell.figures.get(figure)
            if found is not None and found.value is not None:
                ends = [end for end in (found.low, found.high) if end is not None]
                axis.plot(ends, [place] * len(ends), "tab:blue")
                axis.plot([found.value], [place], "o", color="tab:blue", markersize=4)
        axis.set_title(figure, fontsize=8)
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(labelleft=axis is axes[0])
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
    canvas.savefig(path)
