"""The stages by name. A new stage is one module and one line in `STAGES`."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from streamgen.suggest import unknown_key

from ..config import ConfigError, RunConfig, build, read_mapping
from ..stage import Stage


@dataclass(frozen=True)
class StageEntry:
    """Where a stage lives: `module` inside this package, its config class and its stage class."""

    module: str
    config: str
    stage: str


STAGES: Mapping[str, StageEntry] = {
    "tokenizer": StageEntry("tokenizer", "TokenizerRun", "TokenizerStage"),
    "words": StageEntry("words", "WordsRun", "WordsStage"),
    "teacher": StageEntry("teacher", "TeacherRun", "TeacherStage"),
    "causal": StageEntry("causal", "CausalRun", "CausalStage"),
    "init": StageEntry("init", "InitRun", "InitStage"),
    "self_forcing": StageEntry("self_forcing", "SelfForcingRun", "SelfForcingStage"),
}


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a stage's YAML with dotted overrides into the stage's own config class."""
    mapping = read_mapping(path, overrides)
    name = mapping.get("stage")
    if name is None:
        raise ConfigError(f"config {path}: key stage is missing; stages are {', '.join(STAGES)}")
    return build(config_class(str(name)), mapping)


def config_class(name: str) -> type[RunConfig]:
    """The class of the config of the stage `name`."""
    return cast(type[RunConfig], _attribute(name, "config"))


def build_stage(config: RunConfig, device: torch.device) -> Stage:
    """The stage object of a config, its networks on `device`."""
    return cast(Stage, stage_class(config.stage)(config, device))


def stage_class(name: str) -> type[Any]:
    """The class of the stage `name`."""
    return cast(type[Any], _attribute(name, "stage"))


def _attribute(name: str, what: str) -> Any:
    if name not in STAGES:
        raise ConfigError(unknown_key(name, STAGES, noun="stage"))
    entry = STAGES[name]
    # Imported on use: a stage's networks are not needed to train another one.
    module = importlib.import_module(f".{entry.module}", __name__)
    return vars(module)[entry.config if what == "config" else entry.stage]
