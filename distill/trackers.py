"""Experiment trackers that a run's numbers and pictures can go to: TensorBoard, Weights & Biases, trackio."""

import importlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .config import ConfigError

PROJECT = "streamgen"
_ID_FILE = "tracker_id"


@dataclass(frozen=True)
class RunIdentity:
    """What a tracker is told of a run: `resumed` ones go on under the `name` and `key` they had."""

    run_dir: Path
    name: str
    key: str
    resumed: bool
    config: Mapping[str, Any]


def identify(run_dir: Path, resumed: bool, config: Mapping[str, Any]) -> RunIdentity:
    """The identity of a run; it is kept in `run_dir/tracker_id`, and a run from step 0 gets a new one."""
    path = run_dir / _ID_FILE
    if not (resumed and path.is_file()):
        path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        resumed = False
    key = path.read_text(encoding="utf-8").strip()
    return RunIdentity(run_dir, f"{'-'.join(run_dir.parts[-2:])}-{key}", key, resumed, config)


def open_sink(name: str, run: RunIdentity) -> "Sink":
    """The tracker `name` for a run; raises ConfigError where its package is not installed."""
    try:
        return _TensorBoard(run) if name == "tensorboard" else _Hosted(name, run)
    except ImportError:
        package = {"tensorboard": "'streamgen[train]'"}.get(name, name)
        raise ConfigError(f"trackers: {name} is not installed: pip install {package}") from None


class _TensorBoard:
    """Numbers by name, such as `train/loss`, and PNG files, whose names without suffix are their titles."""

    def __init__(self, run: RunIdentity) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(run.run_dir / "tensorboard"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def pictures(self, paths: list[Path], step: int) -> None:
        for path in paths:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(path.stem, pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """The same for Weights & Biases, or trackio, which has its calls."""

    def __init__(self, package: str, run: RunIdentity) -> None:
        self._package = importlib.import_module(package)
        options: dict[str, Any] = {"project": PROJECT, "name": run.name, "config": dict(run.config)}
        if package == "wandb":
            options |= {"id": run.key, "dir": str(run.run_dir), "resume": "allow"}
        else:
            options["resume"] = "allow" if run.resumed else "never"
        self._package.init(**options)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._package.log(dict(values), step=step)

    def pictures(self, paths: list[Path], step: int) -> None:
        self._package.log({path.stem: self._package.Image(str(path)) for path in paths}, step=step)

    def close(self) -> None:
        self._package.finish()


#: Where numbers and pictures go.
Sink = _TensorBoard | _Hosted
