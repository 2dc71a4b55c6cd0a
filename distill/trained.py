"""A module in training with all that belongs to it: its prepared form, optimizers, average and state."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamgen.errors import CheckpointError

from . import lora
from .checkpoint import check_same_tensors
from .config import RunConfig
from .ema import Ema
from .errors import TrainingError
from .optim import ParameterGroups, build_optimizers
from .parallel import Parallel
from .sharding import ShardedModule, local, share, whole, whole_tree


class TrainedModule:
    """One of a stage's modules. `prepared` is what losses are computed through, `module` the stage's own.

    `groups` are the optimizers' shares of its parameters, as they are after `Parallel.prepare`.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        prepared: tuple[nn.Module, ShardedModule | None],
        groups: ParameterGroups,
        config: RunConfig,
        parallel: Parallel,
    ) -> None:
        self.name, self.module = name, module
        self.prepared, self._shards = prepared
        self._parallel = parallel
        # Taken now, while none is gathered: of sharded modules these are the lasting ones.
        self.parameters = dict(module.named_parameters())
        _check_groups(name, groups, self.parameters)
        self.optimizers = build_optimizers(config.optim, groups)
        self.ema = Ema(module, config.ema_decay)

    def clip(self, limit: float | None) -> Tensor:
        """Scale gradients down to the norm `limit` (None: as they are); returns their norm before.

        Where that is not finite they stay as they are, to be looked at.
        """
        parameters = [p for p in self.parameters.values() if p.grad is not None]
        if not parameters:
            raise TrainingError(f"{self.name}: no parameter received a gradient")
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if limit is not None:
            # without asking the device whether it is finite
            factor = torch.where(norm.isfinite(), (limit / (norm + 1e-6)).clamp(max=1.0), 1.0)
            torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], factor)
        return norm

    def step(self) -> None:
        """Update the parameters and their average; forget the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update()

    def nonfinite_gradients(self) -> list[str]:
        """Names of parameters whose gradient, or this process' share of it, is not finite."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        return [name for name, grad in gradients.items() if not bool(torch.isfinite(local(grad)).all())]

    @contextmanager
    def averaged(self, whole: bool = True) -> Iterator[None]:
        """The averaged weights in place, whole and with adapters merged, in evaluation mode.

        Called by all processes together; only in the main one is there anything to use. Not `whole`, they are
        as they lie, with adapters beside them, and used by all processes together.
        """
        with ExitStack() as stack:
            if not whole:
                stack.enter_context(self.ema.applied())
                self.module.eval()
            elif self._shards is not None:
                stack.enter_context(self._shards.whole(self.ema.averages(), self._parallel.main))
            elif self._parallel.main:
                stack.enter_context(self.ema.applied())
            if whole and self._parallel.main:
                stack.enter_context(lora.merged(self.module))
                self.module.eval()
            try:
                with torch.no_grad():
                    yield
            finally:
                self.module.train()

    def state(self, whole: bool = True) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps under "modules", "optimizers" and "ema": whole, in the main process, or as
        it lies here.
        """
        optimizers = {kind: optimizer.state_dict() for kind, optimizer in self.optimizers.items()}
        parts: dict[str, dict[str, Any]] = {
            "modules": self._kept(),
            "optimizers": optimizers,
            "ema": self.ema.state_dict(),
        }
        if self._shards is None or not whole:
            return parts
        whole_parts: dict[str, dict[str, Any]] = whole_tree(parts, self._parallel.main)
        return whole_parts

    def templates(self) -> dict[str, Tensor]:
        """Tensors that lie as those of a saved `state` are to lie, by their places in a checkpoint."""
        found: dict[str, Tensor] = {}
        for kind, tensors in (("modules", self._kept()), ("ema", self.ema.state_dict())):
            found |= {f"{kind}/{self.name}/{name}": tensor for name, tensor in tensors.items()}
        for kind, optimizer in self.optimizers.items():
            for index, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                    found[f"optimizers/{self.name}/{kind}/state/{index}/{key}"] = p.detach()
        return found

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """Go on from a `state()`, whichever number of processes it was saved by.

        Raises:
            CheckpointError: it is not of this module.
        """
        if self.name not in state["modules"]:
            raise CheckpointError(f"{where}: has no module {self.name}")
        kept, saved = self._kept(), state["modules"][self.name]
        check_same_tensors(saved, kept, where)
        for name, tensor in kept.items():
            local(tensor).copy_(local(share(saved[name], tensor)))
        self.ema.load_state_dict(state["ema"][self.name])
        self._load_optimizers(state["optimizers"][self.name], where)

    def _kept(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps: all, but with adapters not the base they adapt."""
        tensors = self.module.state_dict()
        if lora.is_adapted(self.module):
            base = {name for name, p in self.parameters.items() if not p.requires_grad}
            tensors = {name: tensor for name, tensor in tensors.items() if name not in base}
        return tensors

    def _load_optimizers(self, saved: Mapping[str, Any], where: str) -> None:
        if set(saved) != set(self.optimizers):
            raise CheckpointError(
                f"{where}: {self.name} has optimizers {sorted(saved)}, this config {sorted(self.optimizers)}"
            )
        for kind, optimizer in self.optimizers.items():
            rates = [group["base_lr"] for group in optimizer.param_groups]
            sizes = [len(group["params"]) for group in optimizer.param_groups]
            if [len(group["params"]) for group in saved[kind]["param_groups"]] != sizes:
                raise CheckpointError(f"{where}: {self.name} has other parameters in {kind} than this config")
            optimizer.load_state_dict(_shared_state(optimizer, saved[kind]))
            # The config rules over the checkpoint, so that a rate can be changed on resume.
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["base_lr"] = rate


def _shared_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state with the tensors of each parameter spread as the parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {
            key: share(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value
            for key, value in saved["state"][index].items()
        }
        for index, p in enumerate(parameters)
        if index in saved["state"]
    }
    return {**saved, "state": state}


def _check_groups(name: str, groups: ParameterGroups, parameters: Mapping[str, nn.Parameter]) -> None:
    known = {id(p) for p in parameters.values() if p.requires_grad}
    strangers = sum(id(p) not in known for p in (*groups.matrices, *groups.others))
    if strangers:
        raise TrainingError(
            f"{name}: optimizer_groups() names {strangers} parameters that are not trained in it; "
            "it has to be made from the parameters of when it is called"
        )
