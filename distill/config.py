"""Training configs: YAML plus dotted overrides, checked against frozen dataclasses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from streamgen import structured
from streamgen.errors import InputError
from streamgen.structured import StructureError, read_yaml, to_plain

T = TypeVar("T")
#: Shipped configs.
CONFIGS = Path(__file__).parents[1] / "configs"


class ConfigError(InputError):
    """A config that cannot be used: names the key, what was expected and what was found."""


def require(condition: bool, name: str, expected: str, found: object) -> None:
    """Raise ConfigError naming `name`, what was expected and what was found, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, found {found}")


@dataclass(frozen=True)
class Bound:
    """Which numbers of a config fit, in words and as a test; said in a type: `lr: NonNegative = 1e-3`."""

    expected: str
    fits: Callable[[float], bool]


Natural = Annotated[int, Bound(">= 0", lambda number: number >= 0)]
Count = Annotated[int, Bound(">= 1", lambda number: number >= 1)]
NonNegative = Annotated[float, Bound(">= 0", lambda number: number >= 0)]
Positive = Annotated[float, Bound("> 0", lambda number: number > 0)]
Share = Annotated[float, Bound("within [0, 1]", lambda number: 0 <= number <= 1)]
Decay = Annotated[float, Bound("within [0, 1)", lambda number: 0 <= number < 1)]
Part = Annotated[float, Bound("above 0, at most 1", lambda number: 0 < number <= 1)]
Several = Annotated[int, Bound(">= 2", lambda number: number >= 2)]
#: Pixel frames of clips that are encoded whole.
ClipFrames = Annotated[int, Bound("1 + 4k, above 1", lambda number: number > 1 and number % 4 == 1)]


class Checked:
    """A dataclass whose numbers are held to the bounds in their types; null fits where it is allowed.

    `section` is put before the names of keys in messages (`optim.`).
    """

    section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str | None = None) -> None:
        if section is not None:
            cls.section = f"{section}."

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            allowed = get_args(hint)
            for bound in _bounds(hint, *allowed):
                value = vars(self)[name]
                expected = bound.expected + (" or null" if type(None) in allowed else "")
                require(value is None or bound.fits(value), f"{self.section}{name}", expected, value)


def _bounds(*hints: Any) -> list[Bound]:
    marked = [hint for hint in hints if get_origin(hint) is Annotated]
    return [bound for hint in marked for bound in hint.__metadata__ if isinstance(bound, Bound)]


@dataclass(frozen=True)
class OptimConfig(Checked, section="optim"):
    """Optimizers and learning-rate shape.

    `lr` drives AdamW; `muon_lr` drives Muon, used for hidden matrices when `matrices` is "muon". The rate
    rises linearly over `warmup_steps`, stays, and falls to `final_fraction` of itself over the last
    `decay_fraction` of the budget.
    """

    matrices: Literal["muon", "adamw"] = "muon"
    lr: NonNegative = 1.5e-3
    muon_lr: NonNegative = 0.02
    muon_momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: Natural = 50
    decay: Literal["none", "linear", "cosine"] = "linear"
    decay_fraction: Share = 0.3
    final_fraction: Share = 0.0


@dataclass(frozen=True)
class CheckpointConfig(Checked, section="checkpoint"):
    """When to save (null switches a trigger off) and how many checkpoints stay on disk; `sharded`: every
    process writes its shares, so that none has to hold a whole state (`distill.shards`).
    """

    every_steps: Count | None = 1000
    every_minutes: Positive | None = 5.0
    keep: Count = 2
    sharded: bool = False


@dataclass(frozen=True)
class PreviewConfig(Checked, section="preview"):
    """When to evaluate with the EMA weights (null switches a trigger off).

    `weights` also exports them beside the pictures, so that figures over training time can be measured later.
    With `sharded` all processes make previews together, each with its share of sharded networks, so that none
    holds a whole one; an export, at the end, is whole in the main process either way.
    """

    every_steps: Count | None = None
    every_minutes: Positive | None = 5.0
    at_start: bool = True
    at_end: bool = True
    weights: bool = False
    sharded: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.sharded and self.weights), "preview.weights", "false with preview.sharded", True)


@dataclass(frozen=True)
class LoraConfig(Checked, section="lora"):
    """Low-rank adapters of rank `rank` on the linear layers whose names end in one of `targets`.

    `alpha` / `rank` scales what they add. `modules` are the stage's modules that get them; the others are
    trained whole. So are, beside the adapters, parameters whose names begin with one of `whole`: inputs that
    the start has not learned, above all, for which a low rank or no linear layer is there.
    """

    rank: Count = 32
    alpha: Positive = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")
    modules: tuple[str, ...] = ("student", "critic")
    whole: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.targets), "lora.targets", "at least one name", "none")
        require(bool(self.modules), "lora.modules", "at least one name", "none")


@dataclass(frozen=True)
class FrozenConfig:
    """How the stage's `networks` that are used and never trained are held: their weights in `precision`, and
    with `offload` on the CPU, from where each part comes to the device while it is computed.
    """

    networks: tuple[str, ...] = ("teacher",)
    precision: Literal["fp32", "bf16"] = "fp32"
    offload: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of their weights."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def differs(self) -> bool:
        """Whether anything is asked for."""
        return self.offload or self.precision != "fp32"

    def of(self, name: str) -> "FrozenConfig":
        """How the network `name` is held: as all others are, unless it is one of `networks`."""
        return self if name in self.networks else FrozenConfig(self.networks)


@dataclass(frozen=True)
class RunConfig(Checked):
    """What every stage's config has; a stage adds its own fields by inheritance.

    `schedule: steps` measures progress as step / max_steps; `schedule: time` as elapsed minutes /
    max_minutes, where elapsed is the time of the training loop (previews and checkpoints included) and
    continues over a resume. `max_minutes` and `max_steps` are hard limits either way. Minutes are those of
    the wall's clock, or with `clock: processor` those that the main process computed, on all its cores
    together: on a machine that others use, too, they are what makes budgets equal.

    `parallel` says what several processes do: `ddp` keeps whole networks on each, `fsdp2` spreads parameters,
    gradients, optimizers and averages over them, `hsdp` over each group of `shards` of them. `sequence`
    processes share each batch, a slab of every latent frame each (`distill.sequence`).
    `activation_checkpointing` computes blocks again in the backward pass instead of keeping what they
    computed; `compile` has programs compute what blocks do around attention. `precision: auto` is bf16
    (autocast) where the device computes in it, else fp32. `frozen` says how networks that only score or teach
    are held.
    """

    stage: str
    run_dir: str
    max_steps: Count
    seed: Natural
    max_minutes: Positive | None = None
    schedule: Literal["steps", "time"] = "steps"
    clock: Literal["wall", "processor"] = "wall"
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    threads: Count | None = None
    gradient_accumulation: Count = 1
    gradient_clip: Positive | None = 1.0
    find_unused_parameters: bool = False
    ema_decay: Decay = 0.998
    log_every: Count = 50
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    prefetch: bool = False
    parallel: Literal["ddp", "fsdp2", "hsdp"] = "ddp"
    shards: Count | None = None
    sequence: Count = 1
    activation_checkpointing: bool = False
    compile: bool = False
    lora: LoraConfig | None = None
    frozen: FrozenConfig = field(default_factory=FrozenConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "time" and self.max_minutes is None:
            raise ConfigError("schedule: time needs max_minutes, found null")
        hybrid = self.parallel == "hsdp"
        expected = "a number of processes with parallel: hsdp" if hybrid else "null without parallel: hsdp"
        require((self.shards is not None) == hybrid, "shards", expected, self.shards)
        if self.optim.matrices == "muon" and (self.parallel != "ddp" or self.lora is not None):
            # Muon makes whole matrices orthogonal: a share of one, or one factor of a product, is none.
            what = "lora" if self.parallel == "ddp" else f"parallel: {self.parallel}"
            raise ConfigError(f"{what} needs optim.matrices: adamw, found muon")


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two plain configs differ, with the values of both (None: no such key)."""
    left, right = _flat(one), _flat(other)
    keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    return {key: (left.get(key), right.get(key)) for key in keys}


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def read_mapping(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file over its bases and apply dotted `key=value` overrides; values are parsed as YAML.

    A file's `base` is another one beside it, or several, of which later ones come over earlier ones; what the
    file says comes over all of them, key by key.

    Raises:
        ConfigError: no such file, not YAML, an override without a value, or a file that is its own base.
    """
    return _merged([_over_bases(Path(path), ()), read_overrides(overrides)], f"config {path}")


def _over_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """What a file and its bases say; `above` are the files that it is a base of."""
    if path.resolve() in above:
        raise ConfigError(f"config {path}: expected bases that end, found one that is its own")
    try:
        mapping = read_yaml(path, label="config ")
    except StructureError as error:
        raise ConfigError(str(error)) from error
    named = mapping.pop("base", [])
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"config {path}: base: expected a file or a list of files, found {named!r}")
    parts = [_over_bases(path.parent / base, (*above, path.resolve())) for base in bases]
    return _merged([*parts, mapping], f"config {path}")


def _merged(parts: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*parts))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from None
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Dotted `key=value` overrides alone as a mapping; values are parsed as YAML.

    Raises:
        ConfigError: an override without a value, or with one that is no YAML.
    """
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r}: expected key=value")
    try:
        loaded = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"overrides: {str(error).splitlines()[0]}") from None
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


def build(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Build the dataclass `cls` from a plain mapping, see `streamgen.structured.build`.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing key or a value that does not fit.
    """
    try:
        return structured.build(cls, mapping, label="config ")
    except StructureError as error:
        raise ConfigError(str(error)) from error


def build_sized(cls: type[T], sizes: str, given: Mapping[str, Any]) -> T:
    """The config of given values over those that its `size` has in `configs/<sizes>`.

    Raises:
        ConfigError: an unknown key or size, or a value that does not fit.
    """
    known = read_mapping(CONFIGS / sizes)
    size = given.get("size", "medium")
    require(size in list(known), "size", f"one of {', '.join(known)}", size)
    return build(cls, known[size] | dict(given))


def write_yaml(mapping: Mapping[str, Any], path: Path) -> None:
    """Write a plain mapping as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(to_plain(mapping))), encoding="utf-8")
