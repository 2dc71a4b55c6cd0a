"""The families of models: from a name or a directory to what loads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoints.directory import VOCABULARY
from .checkpoints.foreign import SUFFIXES
from .checkpoints.inspect import inspect_file
from .engine.choice import AtLoad
from .errors import CheckpointError, InputError
from .machine import default_dtype, device_of
from .stream.model import ModelParts, StreamConfig
from .suggest import unknown_key
from .tiny.config import read_tiny_config, read_vocabulary
from .tiny.inspect import inspect_tiny
from .tiny.load import load_tiny
from .wan.config import config_file, read_wan_config, wan_model_names
from .wan.inspect import foreign_report, inspect_foreign, inspect_wan
from .wan.load import load_wan
from .wan.options import WanOptions

WEIGHTS = Path(__file__).parent / "weights"


def load_parts(
    name: str | Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    wan: WanOptions | None = None,
    at_load: AtLoad | None = None,
) -> ModelParts:
    """The parts of a model by name or from a checkpoint directory; see `load_pipeline`."""
    directory = find_model(name)
    chosen = device_of(device)
    dtype = dtype or default_dtype(chosen)
    wan_config = config_file(name)
    if wan_config is not None:
        return load_wan(str(name), wan_config, chosen, dtype, wan, at_load)
    _expect_no_options(name, wan)
    return load_tiny(str(name), directory, chosen, dtype)


@dataclass(frozen=True)
class Description:
    """What a model is before its weights are read.

    Attributes:
        words: what it knows; None where it reads any text.
        tracks: whether it follows tracks.
    """

    config: StreamConfig
    words: tuple[str, ...] | None
    tracks: bool


def describe(name: str | Path, wan: WanOptions | None = None) -> Description:
    """What a model is by its config alone.

    Raises:
        CheckpointError, InputError: as `load_parts`, as far as the config tells.
    """
    directory, wan_config = find_model(name), config_file(name)
    if wan_config is not None:
        config = read_wan_config(wan_config, () if wan is None else wan.overrides)
        return Description(config, None, config.motion_encoder is not None)
    _expect_no_options(name, wan)
    tiny = read_tiny_config(directory)
    words = read_vocabulary(directory / VOCABULARY, tiny.text_encoder).words
    return Description(tiny, tuple(words), True)


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """A report of plain values; `problems` has a line for each thing that keeps the checkpoint from loading.

    Args:
        path: a checkpoint directory, or a weights file: ours, a published one, a LoRA, a saved stream.

    Raises:
        CheckpointError: nothing there, a config that cannot be read, or a file that is no safetensors.
    """
    wan = config_file(path)
    if wan is not None or (path.is_file() and path.suffix == ".yaml"):
        return inspect_wan(wan or path)
    if path.is_dir():
        return inspect_tiny(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file or directory")
    if path.suffix == ".safetensors":
        return foreign_report(path) or inspect_file(path)
    # a saved stream may have any name
    return inspect_foreign(path) if path.suffix in SUFFIXES else inspect_file(path)


def model_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.yaml"))


def find_model(name: str | Path) -> Path:
    """The directory of a model by name or path; of a Wan-family name, its config file.

    Raises:
        CheckpointError: neither a known name nor a directory.
    """
    if str(name) in model_names():
        return WEIGHTS / str(name)
    if Path(name).is_dir():
        return Path(name)
    found = config_file(name)
    if found is not None:
        return found
    if Path(name).is_file():
        raise CheckpointError(
            f"model {name}: expected a name or directory, found a file; streamgen adopt FILE -o DIR makes a "
            "model of it, or give --weights FILE beside --model NAME"
        )
    known = [*model_names(), *wan_model_names()]
    raise CheckpointError(f"{unknown_key(str(name), known, noun='model')}, and no such directory")


def _expect_no_options(name: str | Path, wan: WanOptions | None) -> None:
    if wan is not None:
        raise InputError(f"model {name}: is not of the Wan family, it takes no weights or overrides")
