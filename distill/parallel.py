"""Processes that train together: joining them, wrapping networks for them, and agreeing on what happens."""

import gc
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast, gather_object
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .config import FrozenConfig, RunConfig, require
from .errors import TrainingError
from .held import offload
from .sharding import UNDIVIDED, ShardedModule, synchronize

# While the main process evaluates, the others wait in their next collective.
PATIENCE = timedelta(hours=3)


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
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[parallel, patience])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        raise TrainingError(f"launched as one of {world} processes, but joined {accelerator.num_processes}")
    return accelerator


def end_processes(accelerator: Accelerator) -> None:
    """Leave the process group, after letting go of all that holds wrapped modules, such as a trainer: they
    refer to the group, and a group that is still referred to can abort its process at exit.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()


class Parallel:
    """How this run's processes share the work: `ddp` copies networks, `fsdp2` shards them, `hsdp` shards each
    of several copies over a group of `shards` processes. Groups of `sequence` of them share a batch each.

    A single process has nothing to share, so that both are the same there. Accelerate's own FSDP is not used:
    it is ignored on CPUs and refuses to prepare a network without an optimizer, as a frozen teacher is.
    """

    def __init__(
        self, accelerator: Accelerator, kind: str, shards: int | None = None, sequence: int = 1
    ) -> None:
        self.accelerator = accelerator
        self.main: bool = accelerator.is_main_process
        self.rank: int = accelerator.process_index
        self.world: int = accelerator.num_processes
        self.device: torch.device = accelerator.device
        self.mesh: DeviceMesh | None = None
        if kind != "ddp" and self.world > 1:
            group = self.world if shards is None else shards
            require(self.world % group == 0, "shards", f"a divisor of the {self.world} processes", group)
            # processes of a group are next to each other; one dimension where there is one copy
            sizes = (group,) if shards is None else (self.world // group, group)
            names = ("copies", "shards")[-len(sizes) :]
            self.mesh = init_device_mesh(self.device.type, sizes, mesh_dim_names=names)

        fits = self.world % sequence == 0
        require(fits, "sequence", f"a divisor of the {self.world} processes", sequence)
        #: Which of how many batches of an update is this process', and who shares it.
        self.place, self.places = self.rank // sequence, self.world // sequence
        self.sequence: ProcessGroup | None = None
        if sequence > 1:
            batches = init_device_mesh(
                self.device.type, (self.places, sequence), mesh_dim_names=("batches", "sequence")
            )
            self.sequence = batches.get_group("sequence")

    def prepare(self, module: nn.Module) -> tuple[nn.Module, ShardedModule | None]:
        """The form of a trained module that losses are computed through, and its shards."""
        if self.mesh is not None:
            synchronize(module.to(self.device))
            return module, ShardedModule(module, self.mesh)
        with warnings.catch_warnings():
            # torch 2.13 renames the option; its new name is unknown to older versions and to accelerate.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            prepared: nn.Module = self.accelerator.prepare_model(module)
        return prepared, None

    def freeze(self, module: nn.Module, held: FrozenConfig) -> None:
        """Make `module` one that is only used: held as the config says, without gradients, sharded where that
        pays.
        """
        module.to(held.dtype).eval().requires_grad_(False)
        if not held.offload:
            module.to(self.device)
        if self.mesh is not None and not isinstance(module, UNDIVIDED):
            ShardedModule(module, self.mesh, held.offload)
        elif held.offload:
            offload(module, self.device)

    def accumulate(self, prepared: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Within the context gradients stay on their process, except for the `last` micro-batch.

        Sharded gradients are reduced every time: a whole one per process is what sharding is to avoid.
        """
        if last or self.mesh is not None:
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.no_sync(prepared)
        return context

    def agree(self, error: str | None) -> list[str]:
        """What failed on any process; called by all together with what failed on each."""
        errors: list[str | None] = gather_object([error])
        return [text for text in errors if text is not None]

    def from_main(self, value: float) -> float:
        """The main process' value."""
        if self.world == 1:
            return value
        return float(broadcast(torch.tensor([value], dtype=torch.float64, device=self.device)).item())

    def largest(self, value: int) -> int:
        """The largest value of any process."""
        if self.world == 1:
            return value
        return int(self.accelerator.gather(torch.tensor([value], device=self.device)).max().item())
