"""A recipe: the stages of a folder of configs one after the other, each in a process of its own."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamgen.suggest import unknown_key

from .config import ConfigError, read_mapping

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


def read_recipe(folder: Path, overrides: Sequence[str] = ()) -> list[tuple[RecipeStage, list[str]]]:
    """The stages of `folder/recipe.yaml` in order, each with its own of the `stage.key=value` overrides.

    Raises:
        ConfigError: no recipe, a stage without a config, or an override of no stage.
    """
    if not (folder / RECIPE).is_file():
        raise ConfigError(f"recipe {folder}: expected a folder with {RECIPE}, or one config")
    names = read_mapping(folder / RECIPE).get("stages")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"recipe {folder / RECIPE}: expected `stages`, a list of names, found {names!r}")
    own: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        name, _, rest = override.partition(".")
        if "=" in name or not rest:
            raise ConfigError(f"override {override!r}: expected stage.key=value behind a recipe")
        if name not in own:
            raise ConfigError(f"override {override!r}: {unknown_key(name, own, noun='stage')}")
        own[name].append(rest)
    stages = []
    for name in names:
        config = folder / f"{name}.yaml"
        run_dir = read_mapping(config, own[name]).get("run_dir")
        if not isinstance(run_dir, str):
            raise ConfigError(f"config {config}: expected run_dir, found {run_dir!r}")
        stages.append((RecipeStage(name, config, Path(run_dir)), own[name]))
    return stages


def run_recipe(
    folder: Path,
    overrides: Sequence[str],
    options: Sequence[str],
    run: Callable[[list[str]], int] | None = None,
) -> int:
    """Run every stage that is not done yet; the exit code of the first that fails, else 0.

    Args:
        folder: configs and `recipe.yaml`.
        overrides: `stage.key=value`.
        options: of the command line, passed on to every stage.
        run: runs `python -m distill` with the given arguments and returns its exit code.
    """
    run = run or _run
    stages = read_recipe(folder, overrides)
    for number, (stage, own) in enumerate(stages, 1):
        place = f"stage {number} of {len(stages)}, {stage.name}"
        if stage.is_done:
            sys.stderr.write(f"{place}: done ({stage.run_dir / 'export'})\n")
            continue
        sys.stderr.write(f"{place}: {stage.config}\n")
        code = run([str(stage.config), *own, *options])
        if code:
            sys.stderr.write(f"{place}: ended with {code}; the same command goes on from there\n")
            return code
    return 0


def _run(arguments: list[str]) -> int:
    code = subprocess.call([sys.executable, "-m", "distill", *arguments])
    # a child that a signal ended has its negative number as its code
    return 128 - code if code < 0 else code
