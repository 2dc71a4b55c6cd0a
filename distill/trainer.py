"""One trainer for every stage: accelerate, EMA, exact resume, atomic checkpoints, budgets in steps or time.

The trainer knows no model. A `Stage` brings loss modules, batches and previews. The randomness of an update
is a function of (seed, step, micro-batch, rank) alone, so that a resumed run repeats exactly what an
uninterrupted one does.
"""

import hashlib
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from torch import Tensor, nn

from streamgen.errors import CheckpointError, StreamgenError
from streamgen.structured import to_plain

from .checkpoint import check_same_tensors, latest_checkpoint, load_checkpoint, save_checkpoint
from .config import RunConfig, write_yaml
from .ema import Ema
from .optim import ParameterGroups, build_optimizers, learning_rate_factor, set_learning_rate
from .tracking import Tracker

# Seconds in which further signals count as the same wish to stop.
SIGNAL_PATIENCE = 3.0
SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}


class TrainingError(StreamgenError):
    """Training cannot go on."""

    exit_code = 1


@dataclass(frozen=True)
class Tick:
    """Which micro-batch is meant: of update `step` (0-based) the one `micro`, for process `rank` of `world`.

    `progress` in [0, 1) is the spent part of the budget, equal on all processes.
    """

    step: int
    micro: int
    rank: int
    world: int
    seed: int
    progress: float

    def generator_seed(self, purpose: str, shared: bool = False) -> int:
        """A 63-bit seed for `purpose`; `shared` gives all processes the same one."""
        place = f"{purpose}|{self.seed}|{self.step}|{self.micro}|{'all' if shared else self.rank}"
        return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "big") >> 1


class Stage(Protocol):
    """What a training stage brings. Built from (config, device) by `distill.stages.build_stage`."""

    def modules(self) -> dict[str, nn.Module]:
        """Trained modules by name; data parallelism wraps each, so the loss is computed in their `forward`.

        A module must hold no other trained module's parameters as submodules.
        """
        ...

    def optimizer_groups(self) -> dict[str, ParameterGroups]:
        """For each trained module the split of its parameters among optimizers."""
        ...

    def target(self, step: int) -> str:
        """The name of the module that update `step` trains."""
        ...

    def batch(self, tick: Tick) -> Any:
        """The data of one micro-batch, a function of `tick` only. May run in a background thread."""
        ...

    def loss(self, module: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss (scalar) and metrics of a batch through `module`, the prepared form of `modules()[target]`."""
        ...

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Metrics at fixed seeds with the weights now in place (the trainer has put the EMA there).

        PNG files written to `out_dir` go to the tracker as well. Runs in the main process only.
        """
        ...

    def export(self, directory: Path) -> None:
        """Write the final weights (the trainer has put the EMA in place). Runs in the main process only."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `reason` is "done" (budget spent) or a signal's name; `exit_code` is 0, 130 or 143."""

    reason: str
    exit_code: int
    step: int
    minutes: float


class Trainer:
    """Trains `stage` as `config` says. `resume` is "latest", "none" or a checkpoint directory.

    `clock` returns seconds and exists for tests. Raises CheckpointError when a checkpoint does not fit and
    TrainingError when the loss or a gradient is not finite.
    """

    def __init__(
        self,
        config: RunConfig,
        stage: Stage,
        accelerator: Accelerator,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.stage = stage
        self.accelerator = accelerator
        self.run_dir = Path(config.run_dir)
        self.step = 0
        self._clock = clock
        self._elapsed_before = 0.0
        self._started = clock()
        self._signal: int | None = None
        self._modules = stage.modules()
        self._prepared = {name: _prepare(accelerator, module) for name, module in self._modules.items()}
        groups = stage.optimizer_groups()
        self._optimizers = {name: build_optimizers(config.optim, groups[name]) for name in self._modules}
        self._ema = {name: Ema(module, config.ema_decay) for name, module in self._modules.items()}

    @property
    def checkpoints(self) -> Path:
        """Where this run's checkpoints lie."""
        return self.run_dir / "checkpoints"

    def run(self, resume: str = "latest") -> Outcome:
        """Train until the budget is spent or a signal asks to stop; then save, evaluate and export."""
        main = self.accelerator.is_main_process
        if main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_yaml(to_plain(self.config), self.run_dir / "config.yaml")
        self._resume(resume)
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            tracker = stack.enter_context(Tracker(self.config, self.run_dir, enabled=main))
            self._started = self._clock()
            self._loop(tracker)
            outcome = self._outcome()
            if self._signal is None:
                self._finish(tracker)
        tracker.say(f"{outcome.reason} at step {outcome.step} after {outcome.minutes:.1f} min")
        return outcome

    def dry_run(self) -> dict[str, float]:
        """Run one update without saving; returns its metrics, `seconds` and the numbers of parameters."""
        started = time.monotonic()
        metrics = self._update(self._tick())
        metrics["seconds"] = time.monotonic() - started
        for name, module in self._modules.items():
            metrics[f"parameters/{name}"] = float(
                sum(p.numel() for p in module.parameters() if p.requires_grad)
            )
        return metrics

    def minutes(self) -> float:
        """Minutes spent in the training loop, earlier sessions of this run included."""
        return self._elapsed_before + (self._clock() - self._started) / 60.0

    def _loop(self, tracker: "Tracker") -> None:
        config = self.config
        progress, stop = self._agree()
        if self.step == 0 and config.preview.at_start and not stop:
            self._preview(tracker)
        saved = previewed = self.minutes()
        with _Batches(self.stage, config.prefetch) as batches:
            while not stop:
                tick = self._tick(progress)
                metrics = self._update(tick, batches)
                self.step += 1
                progress, stop = self._agree()
                tracker.record(self.step, metrics, self.minutes(), progress)
                save, preview = self._due(saved, previewed)
                if save or stop:
                    self._save()
                    saved = self.minutes()
                if preview and not stop:
                    self._preview(tracker)
                    previewed = self.minutes()

    def _update(self, tick: Tick, batches: "_Batches | None" = None) -> dict[str, float]:
        """One optimizer step. Metrics are this process' means over the micro-batches."""
        config, name = self.config, self.stage.target(tick.step)
        module, optimizers = self._prepared[name], self._optimizers[name]
        factor = learning_rate_factor(config.optim, tick.step, tick.progress)
        set_learning_rate(optimizers.values(), factor)
        totals: dict[str, float] = {}
        for micro in range(config.gradient_accumulation):
            place = replace(tick, micro=micro)
            batch = batches.get(place) if batches else self.stage.batch(place)
            torch.manual_seed(place.generator_seed("loss"))
            last = micro == config.gradient_accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(module):
                with torch.autocast(
                    self.accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"
                ):
                    loss, metrics = self.stage.loss(module, batch)
                self.accelerator.backward(loss / config.gradient_accumulation)
            for key, value in {"loss": loss.detach(), **metrics}.items():
                totals[key] = totals.get(key, 0.0) + float(value) / config.gradient_accumulation
        norm = self._clip(self._modules[name])
        if not torch.isfinite(norm):
            self._stop_for_nonfinite(tick.step, totals["loss"], float(norm))
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._ema[name].update()
        prefix = "" if len(self._modules) == 1 else f"{name}/"
        return {
            f"{prefix}{key}": value
            for key, value in {**totals, "grad_norm": float(norm), "lr": factor}.items()
        }

    def _clip(self, module: nn.Module) -> Tensor:
        parameters = [p for p in module.parameters() if p.grad is not None]
        if not parameters:
            raise TrainingError(f"step {self.step}: no parameter received a gradient")
        limit = self.config.gradient_clip
        return torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)

    def _stop_for_nonfinite(self, step: int, loss: float, norm: float) -> None:
        # After the gradient all-reduce the norm is the same on every process, so all of them stop here.
        kept = latest_checkpoint(self.checkpoints)
        raise TrainingError(
            f"step {step}: loss {loss:g}, gradient norm {norm:g}; stopped before the update. "
            f"Last good checkpoint: {kept or 'none'}"
        )

    def _tick(self, progress: float = 0.0) -> Tick:
        accelerator = self.accelerator
        return Tick(
            self.step, 0, accelerator.process_index, accelerator.num_processes, self.config.seed, progress
        )

    def _agree(self) -> tuple[float, bool]:
        """(progress, stop) as the same values on all processes: rank 0's clock, anybody's signal."""
        minutes, received = self.minutes(), self._signal or 0
        if self.accelerator.num_processes > 1:
            device = self.accelerator.device
            minutes = float(broadcast(torch.tensor([minutes], dtype=torch.float64, device=device)).item())
            signals = self.accelerator.gather(torch.tensor([received], device=device))
            received = int(signals.max().item())
        self._signal = received or None
        config = self.config
        spent = minutes / config.max_minutes if config.max_minutes is not None else 0.0
        progress = spent if config.schedule == "time" else self.step / config.max_steps
        stop = self.step >= config.max_steps or spent >= 1.0 or self._signal is not None
        return min(progress, 1.0), stop

    def _due(self, saved: float, previewed: float) -> tuple[bool, bool]:
        """Whether to save and whether to preview now; the main process' view decides, it alone acts on it."""
        now = self.minutes()
        checkpoint, preview = self.config.checkpoint, self.config.preview
        save = _reached(checkpoint.every_steps, self.step) or _passed(checkpoint.every_minutes, now - saved)
        show = _reached(preview.every_steps, self.step) or _passed(preview.every_minutes, now - previewed)
        return save, show

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT or SIGTERM asks for a stop after the step; another one some seconds later acts as usual."""
        asked = [float("inf")]
        previous: dict[int, Any] = {}
        numbers = [int(number) for number in SIGNAL_EXIT]

        def note(number: int, _frame: FrameType | None) -> None:
            # Ctrl-C reaches a process twice when a launcher passes on what the terminal has already sent.
            if time.monotonic() - asked[0] > SIGNAL_PATIENCE:
                signal.signal(number, previous[number])
                signal.raise_signal(number)
            self._signal = number
            asked[0] = min(asked[0], time.monotonic())

        for number in numbers:
            previous[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _outcome(self) -> Outcome:
        if self._signal is None:
            return Outcome("done", 0, self.step, self.minutes())
        number = signal.Signals(self._signal)
        return Outcome(f"stopped by {number.name}", SIGNAL_EXIT[number], self.step, self.minutes())

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """EMA weights in place and modules in evaluation mode."""
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.enter_context(self._ema[name].applied())
                module.eval()
            try:
                with torch.no_grad():
                    yield
            finally:
                for module in self._modules.values():
                    module.train()

    def _preview(self, tracker: "Tracker") -> None:
        if self.accelerator.is_main_process:
            out_dir = self.run_dir / "previews" / f"step-{self.step:09d}"
            out_dir.mkdir(parents=True, exist_ok=True)
            with self._averaged():
                metrics = self.stage.evaluate(self.step, out_dir)
                if self.config.preview.weights:
                    self._export(out_dir / "export")
            tracker.preview(self.step, metrics, out_dir, self.minutes())

    def _finish(self, tracker: "Tracker") -> None:
        if self.config.preview.at_end:
            self._preview(tracker)
        if self.accelerator.is_main_process:
            directory = self.run_dir / "export"
            with self._averaged():
                self._export(directory)
            tracker.say(f"exported to {directory}")
        self.accelerator.wait_for_everyone()

    def _export(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.stage.export(directory)

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "optimizers": {
                name: {kind: optimizer.state_dict() for kind, optimizer in optimizers.items()}
                for name, optimizers in self._optimizers.items()
            },
            "ema": {name: ema.state_dict() for name, ema in self._ema.items()},
        }
        meta = {"minutes": self.minutes(), "config": to_plain(self.config)}
        save_checkpoint(self.checkpoints, self.step, state, meta, self.config.checkpoint.keep)

    def _resume(self, resume: str) -> None:
        if resume == "none":
            return
        path = latest_checkpoint(self.checkpoints) if resume == "latest" else Path(resume)
        if path is None:
            return
        state, meta = load_checkpoint(path, "cpu")
        for name, module in self._modules.items():
            if name not in state["modules"]:
                raise CheckpointError(f"checkpoint {path}: has no module {name}")
            check_same_tensors(state["modules"][name], module.state_dict(), f"checkpoint {path}")
            module.load_state_dict(state["modules"][name])
            self._ema[name].load_state_dict(state["ema"][name])
            self._load_optimizers(name, state["optimizers"][name], path)
        self.step = int(meta["step"])
        self._elapsed_before = float(meta["minutes"])

    def _load_optimizers(self, name: str, saved: Mapping[str, Any], path: Path) -> None:
        optimizers = self._optimizers[name]
        if set(saved) != set(optimizers):
            raise CheckpointError(
                f"checkpoint {path}: {name} has optimizers {sorted(saved)}, this config {sorted(optimizers)}"
            )
        for kind, optimizer in optimizers.items():
            rates = [group["base_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved[kind])
            # The config rules over the checkpoint, so that a rate can be changed on resume.
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["base_lr"] = rate


def make_accelerator(config: RunConfig) -> Accelerator:
    """The process' accelerator; precision and accumulation are the trainer's own."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    parallel = DistributedDataParallelKwargs(
        find_unused_parameters=config.find_unused_parameters, broadcast_buffers=False
    )
    # Without a GPU accelerate joins a process group only when told that it is on the CPU.
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in (
        "1",
        "true",
    )
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[parallel])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        raise TrainingError(f"launched as one of {world} processes, but joined {accelerator.num_processes}")
    return accelerator


def _prepare(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        # torch 2.13 renames the option; its new name is unknown to older versions and to accelerate.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        prepared: nn.Module = accelerator.prepare_model(module)
    return prepared


class _Batches:
    """Fetches micro-batches, optionally one ahead in a background thread."""

    def __init__(self, stage: Stage, ahead: bool) -> None:
        self._stage = stage
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead else None
        self._pending: tuple[Tick, Future[Any]] | None = None

    def __enter__(self) -> "_Batches":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, tick: Tick) -> Any:
        if self._pool is None:
            return self._stage.batch(tick)
        pending, self._pending = self._pending, None
        matches = pending is not None and (pending[0].step, pending[0].micro) == (tick.step, tick.micro)
        batch = pending[1].result() if pending is not None and matches else self._stage.batch(tick)
        following = replace(tick, step=tick.step + 1)
        self._pending = (following, self._pool.submit(self._stage.batch, following))
        return batch


def _reached(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _passed(every: float | None, minutes: float) -> bool:
    return every is not None and minutes >= every
