"""The stages by name. A new stage is one module and one line in `STAGES`."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from streamgen.structured import has_key
from streamgen.suggest import unknown_key

from ..config import ConfigError, RunConfig, build, read_mapping
from ..stage import Stage

#: How the names of a stage's classes begin (`CausalRun`, `CausalStage`), by the name of the stage and of its
#: module here.
STAGES: Mapping[str, str] = {
    "tokenizer": "Tokenizer",
    "words": "Words",
    "teacher": "Teacher",
    "causal": "Causal",
    "init": "Init",
    "self_forcing": "SelfForcing",
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
    return cast(type[RunConfig], _class(name, "Run"))


def takes(config: Path, key: str) -> bool:
    """Whether the stage of a config takes a dotted key."""
    return has_key(config_class(str(read_mapping(config).get("stage"))), key)


def build_stage(config: RunConfig, device: torch.device) -> Stage:
    """The stage object of a config, its networks on `device`."""
    return cast(Stage, stage_class(config.stage)(config, device))


def stage_class(name: str) -> type[Any]:
    """The class of the stage `name`."""
    return cast(type[Any], _class(name, "Stage"))


def _class(name: str, what: str) -> Any:
    if name not in STAGES:
        raise ConfigError(unknown_key(name, STAGES, noun="stage"))
    # Imported on use: a stage's networks are not needed to train another one.
    module = importlib.import_module(f".{name}", __name__)
    return vars(module)[STAGES[name] + what]
