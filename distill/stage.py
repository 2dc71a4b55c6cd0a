"""What a training stage brings to the trainer."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from .optim import ParameterGroups, split_parameters


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


class Stage(ABC):
    """What a training stage brings. Built from (config, device) by `distill.stages.build_stage`.

    What it has to bring is abstract; the rest is as most stages have it, and as good as not there.
    """

    #: Parts of the names of parameters that are no maps between hidden spaces, so not for Muon.
    edges: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def networks(cls, config: Any) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """The trained and the frozen networks by name, freshly made: no weights are read, configs may be.
        Called with the meta device as the default one, to count what this machine may not hold.
        """

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Trained modules by name; data parallelism wraps each, so the loss is computed in their `forward`.

        A module must hold no other trained module's parameters as submodules.
        """

    def frozen(self) -> dict[str, nn.Module]:
        """Networks that are used and not trained, by name. The trainer moves them to the device, switches off
        their gradients, puts them in evaluation mode and, under FSDP2, shards them; no optimizer, average or
        checkpoint has them.
        """
        return {}

    def optimizer_groups(self) -> dict[str, ParameterGroups]:
        """For each trained module the split of its parameters among optimizers: hidden matrices apart from
        `edges`.

        Asked once, after the trainer has put adapters in and sharded: made from the parameters of now.
        """
        return {name: split_parameters(module, self.edges) for name, module in self.modules().items()}

    def target(self, step: int) -> str:
        """The name of the module that update `step` trains: the first one."""
        return next(iter(self.modules()))

    @abstractmethod
    def batch(self, tick: Tick) -> Any:
        """The data of one micro-batch, a function of `tick` only. May run in a background thread."""

    def loss(self, module: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss (scalar) and metrics of a batch through `module`, the prepared form of `modules()[target]`."""
        result: tuple[Tensor, dict[str, Tensor | float]] = module(batch)
        return result

    @abstractmethod
    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Metrics at fixed seeds with the weights now in place (the trainer has put the EMA there).

        PNG files written to `out_dir` go to the trackers as well. Runs in the main process only.
        """

    def check(self) -> list[str]:
        """What the weights now in place (the trainer has put the averages there) have reached, one fact a
        line. Runs in the main process only, before the export.

        Raises:
            GateError: too little for the next stage to build on; nothing is exported then.
        """
        return []

    @abstractmethod
    def export(self, directory: Path) -> None:
        """Write the final weights (the trainer has put the EMA in place). Runs in the main process only."""

    def state(self) -> dict[str, Any] | None:
        """What this process' losses carry from one update to the next, such as streams that run on: tensors
        and plain values in dicts, lists and tuples; None where they carry nothing, ever.

        Only `loss` may change it: `batch` runs ahead of the updates.
        """
        return None

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state()`, tensors on the CPU; what follows must be bit-exact there."""
        raise NotImplementedError(f"{type(self).__name__} has no state")
