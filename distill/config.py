"""Training configs: YAML plus dotted overrides, checked against frozen dataclasses."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from streamgen.errors import InputError

T = TypeVar("T")


class ConfigError(InputError):
    """A config that cannot be used: names the key, what was expected and what was found."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizers and learning-rate shape.

    `lr` drives AdamW; `muon_lr` drives Muon, used for hidden matrices when `matrices` is "muon". The rate
    rises linearly over `warmup_steps`, stays, and falls to `final_fraction` of itself over the last
    `decay_fraction` of the budget.
    """

    matrices: Literal["muon", "adamw"] = "muon"
    lr: float = 1.5e-3
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 50
    decay: Literal["none", "linear", "cosine"] = "linear"
    decay_fraction: float = 0.3
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.lr >= 0 and self.muon_lr >= 0, "optim.lr, optim.muon_lr", ">= 0", (self.lr, self.muon_lr)
        )
        require(self.warmup_steps >= 0, "optim.warmup_steps", ">= 0", self.warmup_steps)
        require(0 <= self.decay_fraction <= 1, "optim.decay_fraction", "within [0, 1]", self.decay_fraction)
        require(0 <= self.final_fraction <= 1, "optim.final_fraction", "within [0, 1]", self.final_fraction)


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save (null switches a trigger off) and how many checkpoints stay on disk."""

    every_steps: int | None = 1000
    every_minutes: float | None = 5.0
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.keep >= 1, "checkpoint.keep", ">= 1", self.keep)
        require_positive(self.every_steps, "checkpoint.every_steps")
        require_positive(self.every_minutes, "checkpoint.every_minutes")


@dataclass(frozen=True)
class PreviewConfig:
    """When to evaluate with the EMA weights (null switches a trigger off)."""

    every_steps: int | None = None
    every_minutes: float | None = 5.0
    at_start: bool = True
    at_end: bool = True

    def __post_init__(self) -> None:
        require_positive(self.every_steps, "preview.every_steps")
        require_positive(self.every_minutes, "preview.every_minutes")


@dataclass(frozen=True)
class RunConfig:
    """What every stage's config has; a stage adds its own fields by inheritance.

    `schedule: steps` measures progress as step / max_steps; `schedule: time` as elapsed minutes /
    max_minutes, where elapsed is the wall time of the training loop (previews and checkpoints included) and
    continues over a resume. `max_minutes` and `max_steps` are hard limits either way.
    """

    stage: str
    run_dir: str
    max_steps: int
    seed: int
    max_minutes: float | None = None
    schedule: Literal["steps", "time"] = "steps"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int | None = None
    gradient_accumulation: int = 1
    gradient_clip: float | None = 1.0
    find_unused_parameters: bool = False
    ema_decay: float = 0.998
    log_every: int = 50
    tensorboard: bool = True
    prefetch: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def __post_init__(self) -> None:
        require(self.max_steps >= 1, "max_steps", ">= 1", self.max_steps)
        require(self.seed >= 0, "seed", ">= 0", self.seed)
        require(self.log_every >= 1, "log_every", ">= 1", self.log_every)
        require(self.gradient_accumulation >= 1, "gradient_accumulation", ">= 1", self.gradient_accumulation)
        require(0 <= self.ema_decay < 1, "ema_decay", "within [0, 1)", self.ema_decay)
        require_positive(self.max_minutes, "max_minutes")
        require_positive(self.gradient_clip, "gradient_clip")
        require_positive(self.threads, "threads")
        if self.schedule == "time" and self.max_minutes is None:
            raise ConfigError("schedule: time needs max_minutes, found null")


def require(condition: bool, name: str, expected: str, found: object) -> None:
    """Raise ConfigError naming `name`, what was expected and what was found, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, found {found}")


def require_positive(value: float | None, name: str) -> None:
    """Raise ConfigError unless `value` is None or above zero."""
    require(value is None or value > 0, name, "> 0 or null", value)


def read_mapping(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and apply dotted `key=value` overrides; values are parsed as YAML."""
    if not Path(path).is_file():
        raise ConfigError(f"config {path}: no such file")
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r}: expected key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        mapping = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"config {path}: {_one_line(error)}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise ConfigError(f"config {path}: {_one_line(error)}") from error
        raise
    if not isinstance(mapping, dict):
        raise ConfigError(f"config {path}: expected a mapping of keys, found {type(mapping).__name__}")
    return {str(key): value for key, value in mapping.items()}


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from a plain mapping, nested dataclasses included.

    Raises ConfigError for an unknown key (with the nearest known one), a missing key or a value of the
    wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ConfigError(unknown_key(where + str(key), str(key), list(fields)))
    values: dict[str, Any] = {}
    for name, item in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], where + name)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"config key {where + name} is missing")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config section {where.rstrip('.') or '(top)'}: {_one_line(error)}") from error


def unknown_key(path: str, key: str, known: Sequence[str]) -> str:
    """The message for an unknown key: names the nearest known key, or lists the known ones."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"unknown config key {path}: did you mean {path[: len(path) - len(key)]}{near[0]}?"
    return f"unknown config key {path}: known keys here are {', '.join(known)}"


def to_plain(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and scalars, as YAML writes it."""
    plain = OmegaConf.to_container(OmegaConf.create(_plain(dataclasses.asdict(config))))
    if not isinstance(plain, dict):
        raise TypeError("a config is a mapping")
    return {str(key): value for key, value in plain.items()}


def write_yaml(mapping: Mapping[str, Any], path: Path) -> None:
    """Write a plain mapping as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(_plain(dict(mapping)))), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert_union([item for item in arguments if item is not type(None)], value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"config key {where}: expected one of {', '.join(map(str, arguments))}, found {value!r}"
            )
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin in (dict, list):
        require(isinstance(value, origin), f"config key {where}", f"a {origin.__name__}", repr(value))
        return value
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, Mapping), f"config key {where}", "a section of keys", repr(value))
        return build(typing.cast(type, hint), value, f"{where}.")
    return _scalar(hint, value, where)


def _convert_union(choices: Sequence[Any], value: Any, where: str) -> Any:
    for position, choice in enumerate(choices):
        try:
            return _convert(choice, value, where)
        except ConfigError:
            if position == len(choices) - 1:
                raise
    raise ConfigError(f"config key {where}: found {value!r}")


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    require(isinstance(value, (list, tuple)), f"config key {where}", "a list", repr(value))
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    require(len(value) == len(arguments), f"config key {where}", f"a list of {len(arguments)}", repr(value))
    return tuple(
        _convert(kind, item, f"{where}[{i}]")
        for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
    )


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 (no dot) as text.
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"config key {where}: expected {kind.__name__}, found {value!r}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
