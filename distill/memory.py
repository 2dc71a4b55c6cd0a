"""Whether a run's networks fit this machine, before they are allocated."""

import torch

from streamgen.machine import free_bytes

from .config import ConfigError, RunConfig
from .dry_run import estimate, in_bytes
from .stage import Stage


def check_memory(config: RunConfig, stage: type[Stage], processes: int, device: torch.device) -> None:
    """Compare what stays in memory (weights, gradients, optimizers, averages) with what is free.

    Activations are not counted, so what passes may still be too large. Processes on a CPU share its memory,
    those on GPUs have one each.

    Raises:
        ConfigError: the networks alone do not fit; says what takes how much and what would need less.
    """
    free = free_bytes(device)
    if free is None:
        return
    cost = estimate(config, stage, processes)
    parts = dict(cost.parts)
    if device.type == "cpu":
        # a device that is the CPU has them all the same
        parts["frozen"] += cost.host_bytes
    sharing = processes if device.type == "cpu" else 1
    needed = sum(parts.values()) * sharing
    if needed <= free:
        return
    rows = ", ".join(f"{name} {in_bytes(size)}" for name, size in parts.items())
    each = f" ({rows}, in each of {sharing} processes)" if sharing > 1 else f" ({rows})"
    raise ConfigError(
        f"memory: the networks of this config need {in_bytes(needed)} on {device}{each}, {in_bytes(free)} "
        "are free; less would need a smaller network, lora, frozen.precision: bf16, frozen.offload, or "
        "parallel: fsdp2 on several devices"
    )
