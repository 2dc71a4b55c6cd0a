"""A recipe: the stages of a folder of configs one after the other, each in a process of its own, and a report
on what the last one leaves.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from streamgen.suggest import unknown_key

from .command import say
from .config import ConfigError, read_mapping, read_overrides
from .signals import SIGNAL_EXIT

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class RecipeStage:
    """One stage of a recipe: its config file and the folder that its run leaves."""

    name: str
    config: Path
    run_dir: Path

    @property
    def is_done(self) -> bool:
        """A run writes its export when its budget is spent."""
        return any((self.run_dir / "export").glob("*.safetensors"))


@dataclass(frozen=True)
class Recipe:
    """Stages in order, each with its own overrides, and the folder of the report on the last one's export;
    None for no report.
    """

    stages: list[tuple[RecipeStage, list[str]]]
    report: Path | None


def read_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read `folder/recipe.yaml`; each stage gets its own of the `stage.key=value` overrides, and of those
    that name no stage, `key=value`, the ones whose key it knows. `report=` is the recipe's own key.

    Raises:
        ConfigError: no recipe, a stage without a config, or an override of no stage.
    """
    if not (folder / RECIPE).is_file():
        raise ConfigError(f"recipe {folder}: expected a folder with {RECIPE}, or one config")
    recipe = read_mapping(folder / RECIPE)
    names = recipe.get("stages")
    own_keys = [override for override in overrides if override.startswith("report=")]
    report = (recipe | read_overrides(own_keys)).get("report")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"recipe {folder / RECIPE}: expected `stages`, a list of names, found {names!r}")
    if not isinstance(report, str | None):
        raise ConfigError(f"recipe {folder / RECIPE}: expected `report`, a folder, found {report!r}")
    own: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        if override in own_keys:
            continue
        for name, rest in _meant(folder, names, override):
            own[name].append(rest)
    stages = []
    for name in names:
        config = folder / f"{name}.yaml"
        run_dir = read_mapping(config, own[name]).get("run_dir")
        if not isinstance(run_dir, str):
            raise ConfigError(f"config {config}: expected run_dir, found {run_dir!r}")
        stages.append((RecipeStage(name, config, Path(run_dir)), own[name]))
    return Recipe(stages, None if report is None else Path(report))


def _meant(folder: Path, names: Sequence[str], override: str) -> list[tuple[str, str]]:
    """The stages that an override is for, each with what it is there."""
    from .stages import takes

    key, equals, _ = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r}: expected [stage.]key=value behind a recipe")
    name, _, rest = key.partition(".")
    if name in names and rest and takes(folder / f"{name}.yaml", rest):
        return [(name, override.partition(".")[2])]
    those = [(stage, override) for stage in names if takes(folder / f"{stage}.yaml", key)]
    if those:
        return those
    if name in names:
        raise ConfigError(f"override {override!r}: stage {name} has no key {rest or 'of that name'}")
    raise ConfigError(
        f"override {override!r}: {unknown_key(name, names, noun='stage')}, and no stage has such a key"
    )


def run_recipe(
    folder: Path,
    overrides: Sequence[str],
    options: Sequence[str],
    run: Callable[[str, list[str]], int] | None = None,
) -> int:
    """Run every stage that is not done yet, then the evaluation, which keeps finished streams itself; the
    exit code of the first that fails, else 0. `options` of the command line are passed on to every stage;
    `run` runs `python -m` a module with arguments and returns its exit code.
    """
    run = run or _run
    recipe = read_recipe(folder, overrides)
    for number, (stage, own) in enumerate(recipe.stages, 1):
        place = f"stage {number} of {len(recipe.stages)}, {stage.name}"
        if stage.is_done:
            say(f"{place}: done ({stage.run_dir / 'export'})")
            continue
        say(f"{place}: {stage.config}")
        code = run("distill", [str(stage.config), *own, *options])
        if code:
            say(f"{place}: ended with {code}; the same command goes on from there")
            return code
    if recipe.report is None:
        return 0
    export = recipe.stages[-1][0].run_dir / "export"
    return run("distill.evaluate", ["--model", str(export), "-o", str(recipe.report)])


def _run(module: str, arguments: list[str]) -> int:
    """Run `python -m` a module to its end, which a wish to stop only brings nearer: it saves first."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in SIGNAL_EXIT}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    # a child that a signal ended has its negative number as its code
    return 128 - code if code < 0 else code
