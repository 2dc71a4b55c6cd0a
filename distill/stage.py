"""What a training stage brings to the trainer: `Stage`, and what it may bring beside it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from .optim import ParameterGroups


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
        """For each trained module the split of its parameters among optimizers.

        Asked once, after the trainer has put adapters in and sharded: made from the parameters of now.
        """
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

        PNG files written to `out_dir` go to the trackers as well. Runs in the main process only.
        """
        ...

    def export(self, directory: Path) -> None:
        """Write the final weights (the trainer has put the EMA in place). Runs in the main process only."""
        ...


@runtime_checkable
class StatefulStage(Protocol):
    """A stage whose losses carry something from one update to the next, such as streams that run on.

    Only `loss` may change it: `batch` runs ahead of the updates.
    """

    def state(self) -> dict[str, Any]:
        """This process' state: tensors and plain values in dicts, lists and tuples."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state()`, tensors on the CPU; what follows must be bit-exact there."""
        ...


@runtime_checkable
class FrozenStage(Protocol):
    """A stage with networks that are used and not trained."""

    def frozen(self) -> dict[str, nn.Module]:
        """Such networks by name. The trainer moves them to the device, switches off their gradients, puts
        them in evaluation mode and, under FSDP2, shards them; no optimizer, average or checkpoint has them.
        """
        ...


@runtime_checkable
class GatedStage(Protocol):
    """A stage that is to reach something before the next one may build on it."""

    def check(self) -> list[str]:
        """What the weights now in place (the trainer has put the averages there) have reached, one fact a
        line. Runs in the main process only, before the export.

        Raises:
            GateError: too little; nothing is exported then.
        """
        ...


@runtime_checkable
class SmallestStage(Protocol):
    """A stage that can make a smaller batch than its config's, for a dry run."""

    def smallest(self, tick: Tick) -> Any:
        """A batch for `loss` as `batch` makes it, as small as the networks allow."""
        ...


@runtime_checkable
class NetworkStage(Protocol):
    """A stage class whose networks can be built alone, for a dry run of what this machine cannot hold."""

    @classmethod
    def networks(cls, config: Any) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """The trained and the frozen networks by name, freshly made: no weights are read, configs may be.
        Called with the meta device as the default one.
        """
        ...
