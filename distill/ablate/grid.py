"""A grid: what every cell trains, in what the cells differ, and what is measured."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from streamgen.errors import InputError
from streamgen.render.job import parse_settings
from streamgen.stream.settings import StreamSettings
from streamgen.suggest import unknown_key

from ..config import ConfigError, build, read_mapping, read_overrides, require
from ..evaluation.figures import METRICS
from ..evaluation.suites import evaluation_config

#: What is measured of a tokenizer alone.
TOKENIZER_FIGURES = ("psnr_tokenizer", "psnr_moving", "shape_through_tokenizer")
_OF_ALL = ("evaluate", "settings")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class GridStage:
    """A training of every cell: a stage's config, relative to the grid, and overrides of all cells. In
    these `@name` stands for the export of an earlier stage. `shared` ones are trained once for all cells.
    """

    config: str
    overrides: tuple[str, ...] = ()
    shared: bool = False

    @property
    def name(self) -> str:
        """The name of the config's file."""
        return Path(self.config).stem


@dataclass(frozen=True)
class CellConfig:
    """In what a cell differs: overrides `stage.key=value`, stream `settings`, what is evaluated, and which of
    the grid's `stages` it trains, by name; null: all.
    """

    overrides: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    stages: tuple[str, ...] | None = None

    def trains(self, stage: GridStage) -> bool:
        """Whether the cell trains a stage."""
        return self.stages is None or stage.shared or stage.name in self.stages


@dataclass(frozen=True)
class Claim:
    """What a paper says: that `figure` is better in cell `better` than in cell `worse`, and where."""

    figure: str
    better: str
    worse: str
    source: str


@dataclass(frozen=True)
class Grid:
    """Cells by name, the first of which the others are held against.

    Attributes:
        title: what is asked.
        cells: what differs; a cell may be null, as all cells are.
        stages: trainings in order; the last one's export is judged.
        model: judged where there are no stages.
        judge: `streams` by `python -m distill.evaluate --model`, or the `tokenizer` of the last stage.
        seeds: of trainings; each cell is trained with each.
        evaluate, settings: of all cells.
        figures: columns of the table.
        claims: what is to be found again, each with its verdict below the table.
    """

    title: str
    cells: dict[str, CellConfig]
    figures: tuple[str, ...]
    stages: tuple[GridStage, ...] = ()
    model: str | None = None
    judge: Literal["streams", "tokenizer"] = "streams"
    seeds: tuple[int, ...] = (0,)
    evaluate: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = field(default=())

    @property
    def reference(self) -> str:
        """The cell that the others are held against."""
        return next(iter(self.cells))

    def settings_of(self, cell: str) -> tuple[str, ...]:
        """`key=value` of the streams of a cell: what stands later counts, the cell's own last."""
        given = (setting.partition("=") for setting in (*self.settings, *self.cells[cell].settings))
        return tuple(f"{key}={value}" for key, value in {key: value for key, _, value in given}.items())


def read_grid(path: Path, overrides: Sequence[str] = ()) -> Grid:
    """Read and check a grid. `overrides` are of all cells: `stage.key=value`, `evaluate.key=value` or
    `settings.key=value`.

    Raises:
        ConfigError: unknown keys, also of stages and of the evaluation; cells that repeat; figures that are
            not measured; a grid with nothing to judge.
    """
    mapping = read_mapping(path)
    cells = mapping.get("cells")
    if not isinstance(cells, dict) or not cells:
        raise ConfigError(f"grid {path}: expected cells by name, found {cells!r}")
    known = {str(name): build(CellConfig, cell or {}) for name, cell in cells.items()}
    stages = tuple(build(GridStage, stage) for stage in mapping.get("stages", ()))
    given: dict[str, list[str]] = {name: [] for name in (*_OF_ALL, *(stage.name for stage in stages))}
    for override in overrides:
        name, _, rest = override.partition(".")
        if name not in given:
            raise ConfigError(f"grid {path}: override {override!r}: {unknown_key(name, given, noun='part')}")
        given[name].append(rest)
    stages = tuple(replace(s, overrides=(*s.overrides, *given[s.name])) for s in stages)
    claims = tuple(build(Claim, claim) for claim in mapping.get("claims", ()))
    grid = build(Grid, mapping | {"cells": known, "stages": stages, "claims": claims})
    evaluate, settings = (*grid.evaluate, *given["evaluate"]), (*grid.settings, *given["settings"])
    grid = replace(grid, evaluate=evaluate, settings=settings)
    _check(grid, path)
    return grid


def _check(grid: Grid, path: Path) -> None:
    for name in grid.cells:
        require(
            _NAME.fullmatch(name) is not None, f"grid {path}: cells", "names of a-z, 0-9, _, . and -", name
        )
    require(bool(grid.stages) != bool(grid.model), f"grid {path}", "either stages or a model", "both or none")
    require(len(set(grid.seeds)) == len(grid.seeds) > 0, f"grid {path}: seeds", "different ones", grid.seeds)
    if not grid.stages:
        require(len(grid.seeds) == 1, f"grid {path}: seeds", "one without a training", grid.seeds)
    names = [stage.name for stage in grid.stages]
    require(len(set(names)) == len(names), f"grid {path}: stages", "different ones", ", ".join(names))
    private = [stage.shared for stage in grid.stages]
    require(private == sorted(private, reverse=True), f"grid {path}: stages", "shared ones first", names)
    figures = TOKENIZER_FIGURES if grid.judge == "tokenizer" else measured_figures()
    for figure in (*grid.figures, *(claim.figure for claim in grid.claims)):
        if figure not in figures:
            raise ConfigError(f"grid {path}: {unknown_key(figure, figures, noun='figure')}")
    for claim in grid.claims:
        for side in (claim.better, claim.worse):
            if side not in grid.cells:
                raise ConfigError(f"grid {path}: {unknown_key(side, grid.cells, noun='cell')}")
    plans: dict[str, str] = {}
    for name, cell in grid.cells.items():
        _check_overrides(grid, path, name)
        _check_settings(grid, path, name)
        if grid.judge == "streams":
            evaluation_config(read_overrides((*grid.evaluate, *cell.evaluate)))
        plan = json.dumps(asdict(cell), sort_keys=True)
        require(
            plan not in plans, f"grid {path}: cell {name}", "something that no other has", plans.get(plan)
        )
        plans[plan] = f"what {name} has"


def _check_settings(grid: Grid, path: Path, name: str) -> None:
    """Settings are of streams, which tokenizers are not judged by; a wrong one would end a trained cell."""
    for setting in (*grid.settings, *grid.cells[name].settings):
        where = f"grid {path}: settings"
        require(grid.judge == "streams", where, "none where tokenizers are judged", setting)
        require("=" in setting, where, "key=value", setting)
    try:
        StreamSettings().updated(parse_settings(grid.settings_of(name)))
    except InputError as error:
        raise ConfigError(f"grid {path}: cell {name}: {error}") from None


def measured_figures() -> list[str]:
    """Names of the figures that a report compares stream by stream."""
    return [name for metric in METRICS for name in metric.names.values()]


def _check_overrides(grid: Grid, path: Path, name: str) -> None:
    """Overrides of a cell are of keys that its stages have, and never of shared ones."""
    from ..stages import takes

    of_stage = {stage.name: stage for stage in grid.stages}
    for override in (
        *grid.cells[name].overrides,
        *(f"{s.name}.{o}" for s in grid.stages for o in s.overrides),
    ):
        stage, _, rest = override.partition(".")
        if stage not in of_stage:
            raise ConfigError(
                f"grid {path}: override {override!r}: {unknown_key(stage, of_stage, noun='stage')}"
            )
        key, equals, _ = rest.partition("=")
        if not equals or not takes(path.parent / of_stage[stage].config, key):
            raise ConfigError(f"grid {path}: override {override!r}: stage {stage} has no key {key!r}")
    for stage in grid.cells[name].stages or ():
        if stage not in of_stage:
            raise ConfigError(f"grid {path}: cell {name}: {unknown_key(stage, of_stage, noun='stage')}")
    for override in grid.cells[name].overrides:
        if of_stage[override.partition(".")[0]].shared:
            raise ConfigError(f"grid {path}: cell {name}: {override!r} is of a stage that all cells share")
