"""Optimizers (Muon for hidden matrices, AdamW for the rest) and the learning-rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .config import OptimConfig
from .muon import Muon


@dataclass(frozen=True)
class ParameterGroups:
    """Trainable parameters of one module: `matrices` (2-D, hidden) may go to Muon, `others` go to AdamW.

    `others_lr_scale` multiplies AdamW's rate, `matrices_lr_scale` Muon's.
    """

    matrices: tuple[nn.Parameter, ...]
    others: tuple[nn.Parameter, ...]
    matrices_lr_scale: float = 1.0
    others_lr_scale: float = 1.0


def split_parameters(module: nn.Module, edges: Iterable[str] = ()) -> ParameterGroups:
    """Split a module's trainable parameters into hidden matrices and the rest.

    A parameter whose name contains one of `edges` counts as input, output or embedding and never as a hidden
    matrix: Muon's orthogonal steps suit maps between hidden spaces only (Jordan et al., 2024, "Muon").
    """
    marks = tuple(edges)
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and min(parameter.shape) > 1 and not any(mark in name for mark in marks)
        (matrices if hidden else others).append(parameter)
    return ParameterGroups(tuple(matrices), tuple(others))


def build_optimizers(config: OptimConfig, groups: ParameterGroups) -> dict[str, torch.optim.Optimizer]:
    """Optimizers of one module by name, "muon" and "adamw"; each group keeps its peak rate as `base_lr`."""
    matrices, others = list(groups.matrices), list(groups.others)
    adamw: list[dict[str, object]] = []
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if matrices and config.matrices == "muon":
        rate = config.muon_lr * groups.matrices_lr_scale
        muon = Muon(
            matrices, lr=rate, momentum=config.muon_momentum, weight_decay=config.weight_decay, nesterov=True
        )
        optimizers["muon"] = muon
    elif matrices:
        adamw.append({"params": matrices, "lr": config.lr * groups.matrices_lr_scale})
    if others:
        adamw.append({"params": others, "lr": config.lr * groups.others_lr_scale, "weight_decay": 0.0})
    if adamw:
        optimizers["adamw"] = torch.optim.AdamW(
            adamw,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(config: OptimConfig, step: int, progress: float) -> float:
    """Factor on the peak rate of update `step` (0-based) at `progress` in [0, 1] of the budget.

    Linear warm-up reaches 1 at step `warmup_steps` - 1; the decay covers progress 1 - decay_fraction to 1.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay == "none" or config.decay_fraction == 0:
        return warmup
    done = min(max((progress - (1.0 - config.decay_fraction)) / config.decay_fraction, 0.0), 1.0)
    shape = 1.0 - done if config.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return warmup * (config.final_fraction + (1.0 - config.final_fraction) * shape)


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
