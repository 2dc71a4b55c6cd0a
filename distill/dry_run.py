"""What a run will cost, before it is begun: parameters, memory by part, time per step."""

import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT
from streamgen.machine import forget_peak, memory_mb, peak_memory_mb, synchronize

from . import lora
from .config import RunConfig, require
from .optim import split_parameters
from .sequence import check_slabs
from .sharding import UNDIVIDED, local, units
from .stage import Stage, Tick
from .trained import TrainedModule
from .trainer import Trainer

# Updates looked at to learn how often each module is trained.
_HORIZON = 1000


@dataclass(frozen=True)
class ModuleCost:
    """One trained module: counts of parameters, and bytes on one process.

    `activations` is the peak of a forward and backward pass beyond what stays (None: not measured), `seconds`
    the time of an update.
    """

    name: str
    count: int
    trained: int
    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class RunCost:
    """All of a run: its modules, the counts and bytes of frozen networks, and how the updates are shared.
    Those that are `offloaded` are bytes of the CPU. `plan` says what several processes do, a fact a line.
    """

    modules: tuple[ModuleCost, ...]
    frozen: Mapping[str, tuple[int, int]]
    shares: Mapping[str, float]
    offloaded: frozenset[str] = frozenset()
    plan: tuple[str, ...] = ()

    @property
    def frozen_bytes(self) -> int:
        """What frozen networks take of the device."""
        return sum(size for name, (_, size) in self.frozen.items() if name not in self.offloaded)

    @property
    def host_bytes(self) -> int:
        """What offloaded ones take of the CPU."""
        return sum(size for name, (_, size) in self.frozen.items() if name in self.offloaded)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of the device that stay taken, by what takes them."""
        return {
            "parameters": sum(m.parameters for m in self.modules),
            "gradients": sum(m.gradients for m in self.modules),
            "optimizers": sum(m.optimizer for m in self.modules),
            "average": sum(m.average for m in self.modules),
            "frozen": self.frozen_bytes,
        }

    @property
    def seconds(self) -> float | None:
        """Seconds of a mean update; None if not measured."""
        times = [self.shares[m.name] * m.seconds for m in self.modules if m.seconds is not None]
        return sum(times) if len(times) == len(self.modules) else None

    def lines(self, config: RunConfig) -> list[str]:
        """The report, one fact a line."""
        lines = [*self.plan]
        lines += [f"parameters {m.name} {m.count:,} ({m.trained:,} trained)" for m in self.modules]
        lines += [f"parameters {name} {count:,} (frozen)" for name, (count, _) in self.frozen.items()]
        measured = [m.activations for m in self.modules if m.activations is not None]
        lines += [f"memory {name} {in_bytes(size)}" for name, size in self.parts.items()]
        lines.append(f"memory activations {in_bytes(max(measured)) if measured else 'not measured'}")
        # of several modules one is trained at a time
        total = sum(self.parts.values()) + max(measured, default=0)
        lines.append(f"memory total {in_bytes(total)} per process{'' if measured else ' and activations'}")
        if self.offloaded:
            names = ", ".join(sorted(self.offloaded))
            lines.append(f"memory of the CPU for {names} {in_bytes(self.host_bytes)} per process")
        lines += [f"seconds {m.name} {m.seconds:.3g}" for m in self.modules if m.seconds is not None]
        if self.seconds is not None:
            lines.append(f"seconds per step {self.seconds:.3g}")
            if config.max_minutes is not None:
                steps = min(int(config.max_minutes * 60 / self.seconds), config.max_steps)
                lines.append(f"steps in {config.max_minutes:g} min {steps:,}")
            else:
                hours = config.max_steps * self.seconds / 3600
                lines.append(f"hours for {config.max_steps:,} steps {hours:.3g}")
        return lines


def dry_run(trainer: Trainer) -> RunCost:
    """Update every trained module twice; nothing is written.

    The first update gives the memory, the second, in which everything is warm, the time. On CPUs the memory
    of activations is the growth of the process, which is too small where memory freed before is used again.
    """
    stage = trainer.stage
    targets = [stage.target(step) for step in range(_HORIZON)]
    modules = []
    for name, part in trainer.parts.items():
        tick = replace(trainer.tick(), step=targets.index(name)) if name in targets else trainer.tick()
        with _peak(trainer.parallel.device) as peak:
            update = trainer.gradients(tick, stage.batch)
        trainer.apply(update)
        seconds = _timed(trainer, tick)
        modules.append(_cost(part, peak[0], seconds))
    frozen = {name: (_count(module), _bytes(module.parameters())) for name, module in trainer.frozen.items()}
    shares = {name: targets.count(name) / _HORIZON for name in trainer.parts}
    return RunCost(tuple(modules), frozen, shares, _offloaded(trainer.config, frozen))


def estimate(config: RunConfig, stage: type[Stage], processes: int = 1) -> RunCost:
    """The same without running anything, of networks that are never allocated.

    With `processes` shares of networks the memory is one of them.
    """
    with torch.device("meta"):
        trained, frozen = stage.networks(config)
        for name in config.lora.modules if config.lora else ():
            assert config.lora is not None
            if name in trained:
                lora.adapt(name, trained[name], config.lora, config.seed)
    shares = {"ddp": 1, "fsdp2": processes, "hsdp": min(config.shards or 1, processes)}[config.parallel]
    modules = []
    for name, module in trained.items():
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups, size = split_parameters(module), _bytes(parameters)
        # AdamW keeps two tensors for each parameter, Muon one for each matrix
        muon = config.optim.matrices == "muon"
        optimizer = 2 * _bytes(groups.others) + (1 if muon else 2) * _bytes(groups.matrices)
        average = 4 * sum(p.numel() for p in parameters)
        costs = (_bytes(module.parameters()), size, optimizer, average)
        counts = (_count(module), sum(p.numel() for p in parameters))
        modules.append(ModuleCost(name, *counts, *(cost // shares for cost in costs)))
    sizes = {}
    for name, module in frozen.items():
        count, held = _count(module), config.frozen.of(name)
        size = count * held.dtype.itemsize
        sizes[name] = (count, size // (1 if isinstance(module, UNDIVIDED) else shares))
    plan = _plan(config, processes, shares, (trained, frozen)) if processes > 1 else ()
    return RunCost(tuple(modules), sizes, {}, _offloaded(config, sizes), plan)


def _plan(
    config: RunConfig,
    processes: int,
    shares: int,
    networks: tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]],
) -> tuple[str, ...]:
    """What so many processes do with the trained and the frozen networks of a run; raises ConfigError for
    numbers of processes that do not divide.
    """
    trained, frozen = networks
    for name, count in (("shards", shares), ("sequence", config.sequence)):
        require(processes % count == 0, name, f"a divisor of the {processes} processes", count)
    for part in nn.ModuleList((*trained.values(), *frozen.values())).modules():
        if config.sequence > 1 and isinstance(part, CausalDiT):
            check_slabs(part, config.sequence)
    batches = processes // config.sequence * config.gradient_accumulation
    lines = [
        f"plan {processes} processes: {processes // shares} copies of all networks, each in {shares} shares",
        f"plan {batches} batches an update, each in {config.sequence} slabs",
    ]
    if shares > 1:
        # a unit computes while the next one comes
        every = (*trained.values(), *frozen.values())
        divided = [module for module in every if not isinstance(module, UNDIVIDED)]
        lines.append(f"memory gathered {in_bytes(2 * max(map(_largest_unit, divided)))}")
    for name, module in trained.items():
        size = _bytes(p for p in module.parameters() if p.requires_grad)
        # what a process sends: parameters for both passes, gradients to their owners, and between copies
        sent = 3 * size * (shares - 1) // shares + 2 * (size // shares) * (processes > shares)
        lines.append(f"sent for an update of {name} {in_bytes(sent)} per process")
    return tuple(lines)


def _largest_unit(module: nn.Module) -> int:
    """Bytes of the parameters that sharding gathers together at most."""
    largest, taken = 0, set[int]()
    for unit in (*units(module), module):
        own = [p for p in unit.parameters() if id(p) not in taken]
        taken.update(map(id, own))
        largest = max(largest, _bytes(own))
    return largest


def in_bytes(size: int) -> str:
    """A size in words, such as `5.3 GiB`."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def _cost(part: TrainedModule, peak: int | None, seconds: float) -> ModuleCost:
    parameters = list(part.parameters.values())
    trained = [p for p in parameters if p.requires_grad]
    states = [state for optimizer in part.optimizers.values() for state in optimizer.state.values()]
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    gradients = _bytes(trained)
    return ModuleCost(
        part.name,
        count=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        parameters=_bytes(parameters),
        gradients=gradients,
        optimizer=_bytes(tensors),
        average=_bytes(part.ema.averages().values()),
        activations=None if peak is None else max(peak - gradients, 0),
        seconds=seconds,
    )


def _timed(trainer: Trainer, tick: Tick) -> float:
    started = time.monotonic()
    trainer.apply(trainer.gradients(tick, trainer.stage.batch))
    synchronize(trainer.parallel.device)
    return time.monotonic() - started


def _offloaded(config: RunConfig, frozen: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in frozen if config.frozen.of(name).offload)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(tensors: Iterable[Tensor]) -> int:
    held = [local(tensor) for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int | None]]:
    """Put the largest growth of memory within the context into the list; None where it cannot be told."""
    result: list[int | None] = [None]
    gc.collect()
    synchronize(device)
    before = memory_mb(device) if forget_peak(device) else None
    yield result
    if before is not None:
        result[0] = max(round((peak_memory_mb(device) - before) * 2**20), 0)
