"""Ablations: grids that are checked, cells that are resumed and may fail, tables that say what is decided."""

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import distill.ablate.table
from distill.ablate import __main__ as ablate
from distill.ablate.cells import Cell, Result, Runner, cells_of, steps_of
from distill.ablate.grid import TOKENIZER_FIGURES, CellConfig, Grid, read_grid
from distill.ablate.table import _against, compare, verdict, write_table
from distill.config import ConfigError, read_mapping
from distill.evaluation.intervals import Figure
from distill.stages import load_run
from streamgen.errors import InputError
from tests.tiny_models import assert_needs

GRIDS = Path(__file__).resolve().parents[2] / "configs" / "ablations"

#: Stands for `python -m`: trains for no time and judges by the seed and the cell's own overrides.
WORK = """
import json, os, pathlib, sys
module, arguments = sys.argv[1], sys.argv[2:]
value = dict(a.split("=", 1) for a in arguments if "=" in a)
if module == "distill":
    if value.get("optim.lr") == "13":
        sys.exit("a loss that is not finite")
    if value.get("optim.lr") == "9":
        print("the last words of a process that goes on", flush=True)
        os.kill(os.getpid(), 9)
    folder = pathlib.Path(value["run_dir"])
    with open(folder.parent / "ran", "a") as file:
        file.write(folder.name + " " + value.get("init", "nothing") + "\\n")
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "model.safetensors").touch()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 7, "minutes": 1.5}) + "\\n")
    (folder / "export" / "skill").write_text(value.get("optim.lr", "0.5"))
else:
    model, out = (pathlib.Path(arguments[arguments.index(key) + 1]) for key in ("--model", "-o"))
    out.mkdir(parents=True)
    skill = float((model / "skill").read_text())
    about = {"model": "m", "weights": "w", "settings": "s", "sampling": {"steps": 4}, "config": {}}
    subject = {"size": "big", "colour": "red", "shape": "star", "motion": "up", "background": "sea"}
    (out / "evaluation.json").write_text(json.dumps(about))
    with open(out / "rows.jsonl", "w") as file:
        for seed in range(40):
            shown = float(seed / 40 < skill)
            read = {"colour": {"red": shown}, "shape": {"star": 1.0}, "background": {"sea": 1.0}}
            read |= {"motion": "up", "look": {"red star": shown}, "seam": skill}
            read |= {"first": {"objects": 1, "look": "red star"}}
            row = {"source": "model", "suite": "prompts", "variant": "plain", "kind": "up", "prompt": "p"}
            row |= {"seed": seed, "then": None, "expected": {"subjects": [subject]}, "read": read}
            file.write(json.dumps(row | {"weights": "w", "settings": "s", "stream": None}) + "\\n")
    (out / "report.json").write_text("{}")
"""

GRID = """
title: a grid
seeds: [0, 1]
stages:
  - {config: causal.yaml, shared: true}
  - {config: init.yaml, overrides: [init=@causal]}
evaluate: [prompts=40, unseen=0, drags=0, pairs=0, switches=0, drift=0, long_drift=0]
figures: [color_accuracy, shape_accuracy, seam]
cells:
  plain:
  better: {overrides: [init.optim.lr=0.9]}
  same: {overrides: [init.optim.lr=0.52]}
claims:
  - {figure: color_accuracy, better: better, worse: plain, source: a paper}
  - {figure: color_accuracy, better: plain, worse: better, source: another}
  - {figure: color_accuracy, better: same, worse: plain, source: a third}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a grid, its stages' configs and what stands for Python."""
    for name in ("causal", "init"):
        (tmp_path / f"{name}.yaml").write_text(f"stage: {name}\n")
    (tmp_path / "grid.yaml").write_text(GRID)
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


def runner(place: Path, grid: Grid | None = None, jobs: int = 1) -> Runner:
    def command(module: str, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, str(place / "work.py"), module, *arguments]

    return Runner(grid or read_grid(place / "grid.yaml"), place, place / "out", jobs, command)


def ran(place: Path, cell: str, seed: int) -> list[str]:
    return (place / "out" / cell / f"seed-{seed}" / "ran").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 3])
def test_cells_are_trained_judged_and_held_against_the_first(place: Path, jobs: int) -> None:
    """What all share is trained once for each seed; a second run finds all done; the table has verdicts."""
    results = list(runner(place, jobs=jobs).run())
    assert [result.error for result in results] == [None] * 8
    for seed in (0, 1):
        assert ran(place, "shared", seed) == ["causal nothing"]
        begun = place / "out" / "shared" / f"seed-{seed}" / "causal" / "export"
        for cell in ("plain", "better", "same"):
            assert ran(place, cell, seed) == [f"init {begun}"]
    again = list(runner(place, jobs=jobs).run())
    assert all(result.seconds is None and result.error is None for result in again)
    assert ran(place, "better", 0) == ran(place, "better", 0)[:1]
    grid = read_grid(place / "grid.yaml")
    cells = {cell.name: cell for cell in write_table(grid, place / "out", again)}
    assert cells["plain"].seeds == (0, 1)
    assert cells["plain"].figures["color_accuracy"].n == 80
    found = cells["better"].against
    assert found["color_accuracy"].difference == pytest.approx(0.4)
    assert found["color_accuracy"].decided == "better"
    # less is better
    assert found["seam"].decided == "worse"
    assert found["shape_accuracy"].decided == "undecided"
    assert cells["same"].against["color_accuracy"].decided == "undecided"
    text = (place / "out" / "table.md").read_text()
    claims = [line for line in text.splitlines() if "color_accuracy:" in line]
    assert ["as published" in claims[0], "the other way round" in claims[1], "undecided" in claims[2]] == [
        True
    ] * 3
    lines = [json.loads(line) for line in (place / "out" / "cells.jsonl").read_text().splitlines()]
    assert {"minutes": 1.5, "updates": 7} in [line.get("trained", {}).get("init") for line in lines]
    assert (place / "out" / "figures.png").stat().st_size > 1000


def test_streams_of_different_trainings_are_not_mixed_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs are equal streams of equal training seeds."""
    list(runner(place).run())
    grid = read_grid(place / "grid.yaml")
    cells = cells_of(grid, place / "out")
    first, second = ([cell for cell in cells if cell.name == name] for name in ("plain", "better"))

    def check() -> None:
        assert compare(grid, first, second)["color_accuracy"].n == 80

    assert_needs(check, monkeypatch, distill.ablate.table, "_SEED_STRIDE", 0)


def test_switches_under_a_cells_own_policy_are_held_against_the_usual_ones(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell may differ in what becomes of the cache: rows of another variant, streams that are equal."""
    grid = read_grid(place / "grid.yaml")
    first, second = (
        [cell for cell in cells_of(grid, place / "out") if cell.name == n] for n in ("plain", "same")
    )
    for cells, policy, dB in ((first, "recache", 30.0), (second, "keep", 20.0)):
        for cell in cells:
            cell.report.mkdir(parents=True)
            about = {
                "model": "m",
                "weights": "w",
                "settings": "s",
                "sampling": {},
                "config": {"policy": policy},
            }
            (cell.report / "evaluation.json").write_text(json.dumps(about))
            read = {"hop": 1.0, "step": 1.0, "psnr": dB, "shown_after": 3}
            row = {"source": "model", "suite": "switches", "variant": policy, "kind": "colour", "prompt": "p"}
            row |= {"seed": 1, "then": "q", "expected": {}, "read": read, "weights": "w", "settings": "s"}
            (cell.report / "rows.jsonl").write_text(json.dumps(row) + "\n")

    def check() -> None:
        found = compare(grid, first, second).get("switch_kept")
        assert found is not None
        assert (found.n, found.difference) == (2, -1.0)

    assert_needs(check, monkeypatch, distill.ablate.table, "POLICIES", ("none",))


@pytest.mark.slow
def test_a_cell_that_fails_leaves_the_others_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its row says why, and it is tried again; where what all share fails, the seed's cells are not begun."""
    (place / "grid.yaml").write_text(GRID.replace("0.9", "13").replace("0.52", "9"))
    results = {(r.cell.name, r.cell.seed): r.error for r in runner(place).run()}
    assert results["better", 0] == results["better", 1] == "a loss that is not finite"
    assert results["same", 0] == "killed by SIGKILL (out of memory?)"
    assert sum(error is not None for error in results.values()) == 4
    (place / "grid.yaml").write_text(GRID.replace("0.9", "13"))
    for seed in (0, 1):
        (place / "out" / "same" / f"seed-{seed}" / "plan.json").unlink()
    list(runner(place).run())
    grid = read_grid(place / "grid.yaml")
    cells = write_table(
        grid, place / "out", [Result(Cell("better", 0, place), 1.0, "a loss that is not finite")]
    )
    assert cells[1].error == "a loss that is not finite"
    assert "failed: a loss" in (place / "out" / "table.md").read_text()
    assert cells[2].against["color_accuracy"].n == 80
    (place / "causal.yaml").write_text("stage: causal\n")
    broken = GRID.replace("shared: true", 'shared: true, overrides: ["optim.lr=13"]')
    (place / "grid.yaml").write_text(broken)
    with pytest.raises(ConfigError, match="one of other overrides"):
        list(runner(place).run())
    fresh = Runner(read_grid(place / "grid.yaml"), place, place / "other", 2, runner(place).command)
    errors = [result.error for result in fresh.run()]
    assert errors.count("what all cells share has failed") == 6
    assert not (place / "other" / "plain").exists()


def test_pairs_that_all_agree_have_not_found_the_smallest_difference() -> None:
    """A grid said of 32 equal pairs that a difference of 0.000 would have been found."""
    assert _against("switch_soon", 0.0, 0.0, 0.0, 32).smallest == 3 / 32
    assert _against("switch_soon", 0.1, 0.05, 0.15, 32).smallest == pytest.approx(0.0715, abs=1e-4)


def test_a_cell_that_was_not_run_has_not_failed(place: Path) -> None:
    (place / "out").mkdir()
    write_table(read_grid(place / "grid.yaml"), place / "out", [])
    text = (place / "out" / "table.md").read_text()
    assert "not run yet" in text
    assert "failed" not in text


@pytest.mark.slow
def test_stopping_lets_what_runs_save(place: Path) -> None:
    """SIGTERM to the command reaches the trainings, which are waited for."""
    saving = "import signal, sys, time, pathlib\nplace = pathlib.Path(sys.argv[1]).parent\n"
    saving += "def save(*_):\n    time.sleep(0.5); (place / 'saved').touch(); sys.exit(143)\n"
    saving += "signal.signal(signal.SIGTERM, save); (place / 'ready').touch(); time.sleep(60)\n"
    (place / "saving.py").write_text(saving)
    main = "import sys\nfrom distill.ablate import cells, __main__ as m\n"
    work = [sys.executable, str(place / "saving.py"), str(place / "x")]
    main += f"cells.Runner.__init__.__defaults__ = (1, lambda *given: {work!r})\n"
    main += f"sys.exit(m.main([{str(place / 'grid.yaml')!r}, '-o', {str(place / 'out')!r}]))\n"
    process = subprocess.Popen([sys.executable, "-c", main], stderr=subprocess.PIPE)
    while not (place / "ready").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert (place / "saved").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("figures: [color_accuracy", "figures: [colour_accuracy"), "did you mean 'color_accuracy'"),
        (("init.optim.lr=0.9", "init.optim.rate=0.9"), r"stage init has no key 'optim\.rate'"),
        (("init.optim.lr=0.9", "inti.optim.lr=0.9"), "did you mean 'init'"),
        (("init.optim.lr=0.9", "causal.optim.lr=0.9"), "of a stage that all cells share"),
        (("0.52", "0.9"), "expected something that no other has, found what better has"),
        (("seeds: [0, 1]", "seeds: [1, 1]"), "expected different ones"),
        (("prompts=40", "prompt=40"), "did you mean 'prompts'"),
        (("better: better", "better: bettter"), "did you mean 'better'"),
        (("init=@causal", "init=@teacher"), "expected an earlier stage"),
        (("title: a grid", "title: a grid\nmodel: tiny"), "either stages or a model"),
        (("cells:\n", "cells: []\nothers:\n"), "expected cells by name"),
        (("  plain:\n", "  Plain Text:\n"), "names of a-z"),
        (("cells:\n", "settings: steps=2\ncells:\n"), "settings"),
        (("cells:\n", "settings: [step=2]\ncells:\n"), "did you mean 'steps'"),
        (("cells:\n", "settings: [steps]\ncells:\n"), "expected key=value, found"),
        (
            ("cells:\n", "settings: [steps=0]\ncells:\n"),
            "cell plain: settings: steps must be in",
        ),
    ],
)
def test_grids_that_cannot_be_run_are_refused(place: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in GRID
    (place / "grid.yaml").write_text(GRID.replace(*change))

    def read() -> None:
        grid = read_grid(place / "grid.yaml")
        for cell in cells_of(grid, place):
            steps_of(grid, place, cell, place)

    with pytest.raises(ConfigError, match=message):
        read()


def test_overrides_of_the_command_are_of_all_cells(place: Path) -> None:
    """Behind those of the stage, before those of the cell; what no stage has is refused."""
    grid = read_grid(
        place / "grid.yaml",
        ["init.optim.lr=0.1", "init.max_minutes=2", "evaluate.prompts=8", "settings.steps=2"],
    )
    cells = {cell.name: cell for cell in cells_of(grid, place / "out")}
    for name, own in (("plain", []), ("better", ["optim.lr=0.9"])):
        training, judging = steps_of(grid, place, cells[name], place / "out")
        assert list(training.arguments[4:]) == ["optim.lr=0.1", "max_minutes=2", *own]
        assert judging.arguments[-1] == "prompts=8"
        assert ("--set", "steps=2") in itertools.pairwise(judging.arguments)
    for override, message in (
        ("inti.max_minutes=2", "init"),
        ("init.max_minuts=2", "no key 'max_minuts'"),
        ("settings.step=2", "did you mean 'steps'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_grid(place / "grid.yaml", [override])


def test_a_setting_that_stands_later_takes_the_place_of_one_before(place: Path) -> None:
    """Of the grid, of the command, of the cell: a key that is given twice would end the judging of a cell."""
    own = GRID.replace("  plain:\n", "  plain: {settings: [steps=1]}\n")
    (place / "grid.yaml").write_text(own.replace("cells:\n", "settings: [steps=4, shift=2]\ncells:\n"))
    grid = read_grid(place / "grid.yaml", ["settings.steps=2"])
    assert grid.settings_of("plain") == ("steps=1", "shift=2")
    assert grid.settings_of("better") == ("steps=2", "shift=2")


def test_a_cell_may_leave_out_stages(place: Path) -> None:
    """What it trains last is judged, and an export that it does not make cannot be named."""
    text = (place / "grid.yaml").read_text().replace("overrides: [init=@causal]", "overrides: []")
    (place / "grid.yaml").write_text(text.replace("  plain:", "  plain: {stages: []}"))
    grid = read_grid(place / "grid.yaml")
    cell, other = (Cell(name, 0, place / name) for name in ("plain", "better"))
    (judging,) = steps_of(grid, place, cell, place)
    assert judging.arguments[1] == str(place / "shared" / "seed-0" / "causal" / "export")
    assert [step.module for step in steps_of(grid, place, other, place)] == ["distill", "distill.evaluate"]
    (place / "grid.yaml").write_text(text.replace("  plain:", "  plain: {stages: [inti]}"))
    with pytest.raises(ConfigError, match="cell plain: unknown stage 'inti'"):
        read_grid(place / "grid.yaml")


def test_bad_input_ends_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(place / "out")
    assert ablate.main([str(place / "none.yaml"), "-o", out]) == 2
    assert "no such file" in capsys.readouterr().err
    assert ablate.main([str(place / "grid.yaml"), "-o", out, "--jobs", "0"]) == 2
    assert "--jobs: expected at least 1, found 0" in capsys.readouterr().err


def test_a_claim_that_was_not_measured_is_not_decided(place: Path) -> None:
    claim = read_grid(place / "grid.yaml").claims[0]
    assert verdict(claim, {}) == "not measured"


def shipped() -> list[Any]:
    """One of them everyday."""
    first, *others = sorted(GRIDS.glob("*.yaml"))
    return [first, *(pytest.param(path, marks=pytest.mark.slow) for path in others)]


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_shipped_grids_can_be_run(path: Path, tmp_path: Path) -> None:
    """Every cell's stages take its overrides, and every figure is measured. Of one seed: no other key of
    the stages differs between seeds.
    """
    grid = read_grid(path)
    cells = [cell for cell in cells_of(grid, tmp_path) if cell.seed == grid.seeds[0]]
    assert cells
    for cell in cells:
        for step in steps_of(grid, path.parent, cell, tmp_path):
            if step.module == "distill":
                run = load_run(step.arguments[0], step.arguments[1:])
                assert run.max_minutes is not None
                # a cell is done in a quarter of an hour
                assert run.max_minutes <= 15
    assert read_mapping(path)["title"].endswith("?")


def test_tokenizers_are_held_against_each_other_clip_by_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips differ by far more than tokenizers: .1 dB between these two are found in pairs alone."""
    draws = random.Random(4)
    grid = Grid("t", {"a": CellConfig(), "b": CellConfig()}, judge="tokenizer", figures=TOKENIZER_FIGURES)
    square = [10 ** draws.uniform(-3, -2) for _ in range(64)]
    shape = [draws.random() for _ in square]
    for cell, factor in zip(cells_of(grid, tmp_path), (1.0, 10**-0.01), strict=True):
        errors = [factor * one * 10 ** draws.uniform(-0.005, 0.005) for one in square]
        figures = {
            "psnr_tokenizer": [[one, 1.0] for one in errors],
            "psnr_moving": [[one * 9, 9.0] for one in errors],
            "shape_through_tokenizer": [[one] for one in shape],
        }
        cell.report.mkdir(parents=True)
        (cell.report / "tokenizers.json").write_text(json.dumps([{"by_clip": figures}]))
    one, other = cells_of(grid, tmp_path)

    def check() -> None:
        found = compare(grid, [one], [other])
        for name in ("psnr_tokenizer", "psnr_moving"):
            assert found[name].decided == "better"
            assert found[name].difference == pytest.approx(0.1, abs=0.02)
            assert found[name].n == 64
        assert found["shape_through_tokenizer"].decided == "undecided"
        back = compare(grid, [other], [one])
        assert back["psnr_moving"].difference == pytest.approx(-found["psnr_moving"].difference)

    def in_any_order(name: str, first: list[Any], second: list[Any]) -> Figure:
        return apart(name, first, draws.sample(second, len(second)))

    apart = distill.ablate.table.tokenizers_apart
    assert_needs(check, monkeypatch, distill.ablate.table, "tokenizers_apart", in_any_order)
    (one.report / "tokenizers.json").write_text(json.dumps([{"psnr_tokenizer": 30.0}]))
    with pytest.raises(InputError, match=r"tokenizers.json: expected .* \(by_clip\); remove it"):
        compare(grid, [one], [other])
