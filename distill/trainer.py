"""One trainer for every stage: accelerate, EMA, exact resume, atomic checkpoints, budgets in steps or time.

The trainer knows no model. A `Stage` brings loss modules, batches and previews. The randomness of an update
is a function of (seed, step, micro-batch, rank) alone, so that a resumed run repeats exactly what an
uninterrupted one does.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from streamgen.errors import CheckpointError
from streamgen.structured import to_plain

from . import lora
from .activation import checkpoint_blocks
from .batches import Batches, moved
from .checkpoint import (
    STATE_FILE,
    CheckpointWriter,
    latest_checkpoint,
    load_checkpoint,
    load_stage_state,
    set_aside_after,
    stage_file,
)
from .compiled import as_written, compile_blocks
from .config import ConfigError, RunConfig, differing_keys, write_yaml
from .errors import TrainingError
from .nonfinite import write_batches
from .optim import learning_rate_factor, set_learning_rate
from .parallel import Parallel, make_accelerator
from .sequence import shared_batch
from .shards import SHARDS, joined, parted, read_shards
from .signals import SIGNAL_EXIT, StopSignals
from .stage import Stage, Tick
from .tracking import Tracker
from .trained import TrainedModule

__all__ = ["Outcome", "Stage", "Tick", "Trainer", "TrainingError", "make_accelerator"]

_CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.monotonic, "processor": time.process_time}
#: Scalars, float64; where an update has nothing to say of one it is not a number.
Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `reason` is "done" (budget spent) or a signal's name; `exit_code` is 0, 130 or 143."""

    reason: str
    exit_code: int
    step: int
    minutes: float


@dataclass(frozen=True)
class Gradients:
    """What an update rests on: the module whose gradients are in place, its batches, metrics and rate.
    Metrics lie on the device until someone reads them: `finite` is the one number that the host waits for.
    """

    part: TrainedModule
    batches: list[Any]
    metrics: Metrics
    factor: float

    @property
    def finite(self) -> bool:
        """Whether loss and gradients are."""
        return bool(torch.stack([self.metrics["loss"], self.metrics["grad_norm"]]).isfinite().all())


class Trainer:
    """Trains `stage` as `config` says. `resume` is "latest", "none" or a checkpoint directory.

    `clock` returns seconds; None is the config's. Raises CheckpointError when a checkpoint does not fit and
    TrainingError when the loss or a gradient is not finite.
    """

    def __init__(
        self,
        config: RunConfig,
        stage: Stage,
        accelerator: Accelerator,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.config = config
        self.stage = stage
        self.accelerator = accelerator
        self.parallel = Parallel(accelerator, config.parallel, config.shards, config.sequence)
        self.run_dir = Path(config.run_dir)
        self.step = 0
        self._clock = clock or _CLOCKS[config.clock]
        self._elapsed_before = 0.0
        self._started = self._clock()
        self._signals = StopSignals()
        self._stop_signal = 0
        self.frozen = stage.frozen()
        if config.frozen.differs and not self.frozen.keys() & set(config.frozen.networks):
            raise ConfigError(
                f"frozen.networks: expected some of {', '.join(self.frozen) or 'no networks'}, "
                f"found {', '.join(config.frozen.networks) or 'none'}"
            )
        for name, module in self.frozen.items():
            if config.compile:
                compile_blocks(module)
            self.parallel.freeze(module, config.frozen.of(name))
        self._bases: dict[str, str] = {}
        self.parts = self._build(stage.modules())

    @property
    def checkpoints(self) -> Path:
        """Where this run's checkpoints lie."""
        return self.run_dir / "checkpoints"

    def run(self, resume: str = "latest") -> Outcome:
        """Train until the budget is spent or a signal asks to stop; then save, evaluate and export."""
        main = self.parallel.main
        with ExitStack() as stack:
            notes = self._resume(resume)
            if main:
                self.run_dir.mkdir(parents=True, exist_ok=True)
                write_yaml(to_plain(self.config), self.run_dir / "config.yaml")
            stack.enter_context(self._signals)
            self._started = self._clock()
            tracker = stack.enter_context(Tracker(self.config, self.run_dir, main, self.step, self.minutes()))
            for note in notes:
                tracker.say(note)
            self._loop(tracker)
            outcome = self._outcome()
            if not self._stop_signal:
                self._finish(tracker)
            tracker.plot()
        tracker.say(f"{outcome.reason} at step {outcome.step} after {outcome.minutes:.1f} min")
        return outcome

    def minutes(self) -> float:
        """Minutes spent in the training loop, earlier sessions of this run included."""
        return self._elapsed_before + (self._clock() - self._started) / 60.0

    def tick(self, progress: float = 0.0) -> Tick:
        """The place of this process' first micro-batch of the next update."""
        parallel = self.parallel
        return Tick(self.step, 0, parallel.place, parallel.places, self.config.seed, progress)

    def update(self, tick: Tick, batch: Callable[[Tick], Any]) -> Metrics:
        """One optimizer step. Metrics are this process' means over the micro-batches.

        Raises:
            TrainingError: a loss or gradient of any process is not finite; nothing is updated then.
        """
        gradients = self.gradients(tick, batch)
        self.apply(gradients)
        part, totals = gradients.part, gradients.metrics | {"lr": torch.tensor(gradients.factor)}
        prefix = "" if len(self.parts) == 1 else f"{part.name}/"
        return {f"{prefix}{key}": value for key, value in totals.items()}

    def gradients(self, tick: Tick, batch: Callable[[Tick], Any]) -> Gradients:
        """Forward and backward passes of update `tick.step`, over all its micro-batches."""
        config, part = self.config, self.parts[self.stage.target(tick.step)]
        totals: Metrics = {}
        batches: list[Any] = []
        for micro in range(config.gradient_accumulation):
            place = replace(tick, micro=micro)
            batches.append(moved(batch(place), self.parallel.device))
            torch.manual_seed(place.generator_seed("loss"))
            last = micro == config.gradient_accumulation - 1
            with self.parallel.accumulate(part.prepared, last), shared_batch(self.parallel.sequence):
                metrics = self._backward(part, batches[-1])
            for key, value in metrics.items():
                part_of_it = value / config.gradient_accumulation
                totals[key] = totals[key] + part_of_it if key in totals else part_of_it
        totals["grad_norm"] = part.clip(config.gradient_clip).detach().double()
        factor = learning_rate_factor(config.optim, tick.step, tick.progress)
        return Gradients(part, batches, totals, factor)

    def apply(self, gradients: Gradients) -> None:
        """Update the parameters, unless a loss or gradient of any process is not finite (TrainingError)."""
        if self.parallel.largest(int(not gradients.finite)):
            self._stop_for_nonfinite(gradients)
        set_learning_rate(gradients.part.optimizers.values(), gradients.factor)
        gradients.part.step()

    def _build(self, modules: Mapping[str, nn.Module]) -> dict[str, TrainedModule]:
        """Adapters, programs, recomputation, data parallelism, then what rests on the final parameters."""
        config = self.config
        for name in config.lora.modules if config.lora else ():
            if name not in modules:
                raise ConfigError(f"lora.modules: expected some of {', '.join(modules)}, found {name}")
            assert config.lora is not None
            lora.adapt(name, modules[name], config.lora, config.seed)
            self._bases[name] = lora.base_digest(modules[name])
        for module in modules.values():
            if config.compile:
                compile_blocks(module)
            if config.activation_checkpointing:
                checkpoint_blocks(module)
        prepared = {name: self.parallel.prepare(module) for name, module in modules.items()}
        groups = self.stage.optimizer_groups()
        return {
            name: TrainedModule(name, module, prepared[name], groups[name], config, self.parallel)
            for name, module in modules.items()
        }

    def _backward(self, part: TrainedModule, batch: Any) -> Metrics:
        """Gradients of one micro-batch; returns its loss and metrics."""
        config, device = self.config, self.parallel.device.type
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, metrics = self.stage.loss(part.prepared, batch)
        self.accelerator.backward(loss / config.gradient_accumulation)
        found, place = {"loss": loss, **metrics}, loss.device
        return {key: torch.as_tensor(x, device=place).detach().double() for key, x in found.items()}

    def _loop(self, tracker: Tracker) -> None:
        config = self.config
        progress, stop = self._agree()
        if self.step == 0 and config.preview.at_start and not stop:
            self._preview(tracker)
        saved = previewed = self.minutes()
        pinned = self.parallel.device.type == "cuda"
        with Batches(self.stage, config.prefetch, pinned) as batches:
            while not stop:
                metrics = self.update(self.tick(progress), batches.get)
                self.step += 1
                progress, stop = self._agree()
                tracker.record(self.step, metrics, self.minutes(), progress)
                save, preview = self._due(saved, previewed)
                if save or stop:
                    self._save(self.checkpoints, config.checkpoint.keep)
                    saved = self.minutes()
                if preview and not stop:
                    self._preview(tracker)
                    previewed = self.minutes()

    def _stop_for_nonfinite(self, gradients: Gradients) -> None:
        """Keep what is needed to look into it: the batches, and the state that this update started from."""
        place = self.run_dir / "nonfinite" / f"step-{self.step:09d}"
        totals = {name: float(value) for name, value in gradients.metrics.items()}
        names = gradients.part.nonfinite_gradients()
        report = {"step": self.step, "module": gradients.part.name, "metrics": totals, "gradients": names}
        failure = None
        try:
            write_batches(place, self.parallel.rank, gradients.batches, report)
        except (OSError, RuntimeError) as error:
            failure = str(error)
        failures = self.parallel.agree(failure)
        kept = f"its batch and the state before it are in {place}"
        try:
            if not failures:
                self._save(place, keep=1)
        except CheckpointError as error:
            failures = [str(error)]
        if failures:
            kept = f"its batch and state could not be kept ({failures[0]})"
        good = latest_checkpoint(self.checkpoints) or "none"
        raise TrainingError(
            f"step {self.step}: loss {totals['loss']:g}, gradient norm {totals['grad_norm']:g}; stopped "
            f"before the update; {kept}. Last good checkpoint: {good}"
        )

    def _agree(self) -> tuple[float, bool]:
        """(progress, stop) as the same values on all processes: the main one's clock, anybody's signal."""
        minutes = self.parallel.from_main(self.minutes())
        self._stop_signal = self.parallel.largest(self._signals.received)
        config = self.config
        spent = minutes / config.max_minutes if config.max_minutes is not None else 0.0
        progress = spent if config.schedule == "time" else self.step / config.max_steps
        stop = self.step >= config.max_steps or spent >= 1.0 or self._stop_signal != 0
        return min(progress, 1.0), stop

    def _due(self, saved: float, previewed: float) -> tuple[bool, bool]:
        """Whether to save and whether to preview now, as the main process sees it."""
        now = self.minutes()
        checkpoint, preview = self.config.checkpoint, self.config.preview
        save = _reached(checkpoint.every_steps, self.step) or _passed(checkpoint.every_minutes, now - saved)
        show = _reached(preview.every_steps, self.step) or _passed(preview.every_minutes, now - previewed)
        due = int(self.parallel.from_main(2 * save + show))
        return due >= 2, due % 2 == 1

    def _outcome(self) -> Outcome:
        if not self._stop_signal:
            return Outcome("done", 0, self.step, self.minutes())
        number = signal.Signals(self._stop_signal)
        return Outcome(f"stopped by {number.name}", SIGNAL_EXIT[number], self.step, self.minutes())

    @contextmanager
    def _averaged(self, whole: bool = True) -> Iterator[None]:
        """Averaged weights in place, whole in the main process or as they lie in all, and modules in
        evaluation mode.
        """
        with ExitStack() as stack:
            stack.enter_context(as_written(self.config.compile))
            for part in self.parts.values():
                stack.enter_context(part.averaged(whole))
            yield

    def _preview(self, tracker: Tracker) -> None:
        out_dir = self.run_dir / "previews" / f"step-{self.step:09d}"
        metrics: dict[str, float] = {}
        main, whole = self.parallel.main, self.parallel.mesh is None or not self.config.preview.sharded
        with self._averaged(whole), TemporaryDirectory() as unused:
            if main or not whole:
                # what the others make on the way is the same once more
                place = out_dir if main else Path(unused)
                place.mkdir(parents=True, exist_ok=True)
                metrics = self.stage.evaluate(self.step, place)
            if main and self.config.preview.weights:
                self._export(out_dir / "export")
        tracker.preview(self.step, metrics, out_dir, self.minutes())

    def _finish(self, tracker: Tracker) -> None:
        if self.config.preview.at_end:
            self._preview(tracker)
        directory = self.run_dir / "export"
        with self._averaged():
            if self.parallel.main:
                for line in self.stage.check():
                    tracker.say(line)
                self._export(directory)
        tracker.say(f"exported to {directory}")
        self.accelerator.wait_for_everyone()

    def _export(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.stage.export(directory)

    def _save(self, root: Path, keep: int) -> None:
        sharded, shards = self.config.checkpoint.sharded, None
        parts = {name: part.state(whole=not sharded) for name, part in self.parts.items()}
        kinds = ("modules", "optimizers", "ema")
        state: dict[str, Any] = {kind: {name: part[kind] for name, part in parts.items()} for kind in kinds}
        if sharded:
            state, shards = parted(state)
        files: dict[str, Mapping[str, Any]] = {STATE_FILE: state} if self.parallel.main else {}
        if (own := self.stage.state()) is not None:
            files[stage_file(self.parallel.rank)] = own
        meta = {"minutes": self.minutes(), "config": to_plain(self.config), "bases": self._bases}
        CheckpointWriter(root, keep, self.parallel.main, self.parallel.agree).save(
            self.step, files, meta, shards
        )

    def _resume(self, resume: str) -> list[str]:
        """Go on from a checkpoint; returns what there is to say about it."""
        path = None if resume == "none" else Path(resume)
        if resume == "latest":
            path = latest_checkpoint(self.checkpoints)
        notes = [] if path is None else self._load(path)
        self.accelerator.wait_for_everyone()
        if self.parallel.main:
            # Later ones would be taken for the latest, and the new ones removed as the oldest.
            for moved in set_aside_after(self.checkpoints, self.step if path else -1):
                notes.append(f"set aside as {moved}: this run starts at step {self.step}")
        return notes

    def _load(self, path: Path) -> list[str]:
        state, meta = load_checkpoint(path, mapped=self.parallel.mesh is not None)
        if (path / SHARDS).is_dir():
            like = {place: x for part in self.parts.values() for place, x in part.templates().items()}
            state = joined(state, read_shards(path / SHARDS, like))
        differing = differing_keys(meta["config"], to_plain(self.config))
        differing.pop("run_dir", None)
        changes = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in differing.items())
        try:
            if meta.get("bases", {}) != self._bases:
                raise CheckpointError(
                    f"checkpoint {path}: its adapters belong to other weights than this run's"
                )
            for part in self.parts.values():
                part.load(state, f"checkpoint {path}")
            if self.stage.state() is not None:
                self.stage.load_state(load_stage_state(path, self.parallel.rank, self.parallel.world))
        except CheckpointError as error:
            raise CheckpointError(f"{error}. Config keys that differ: {changes or 'none'}") from error
        self.step = int(meta["step"])
        self._elapsed_before = float(meta["minutes"])
        return [f"resumed {path} with other settings: {changes}"] if changes else []


def _reached(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _passed(every: float | None, minutes: float) -> bool:
    return every is not None and minutes >= every
