"""Exponential moving average of parameters, kept in float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import local, share


class Ema:
    """Averages the trainable parameters of a module in float32; sharded ones where their shares are.

    Update n is a <- d a + (1 - d) p with d = min(decay, (1 + n) / (10 + n)): short at first, so that the
    average leaves the initial weights quickly.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [local(p.detach()).float() for p in self._parameters.values()]
        torch._foreach_lerp_([local(a) for a in self._average.values()], current, 1.0 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Within the context the module carries the averaged parameters; afterwards its own, bit for bit."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.copy_(self._average[name])
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.copy_(kept[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, and the number of updates as `#updates`."""
        return {**self._average, "#updates": torch.tensor(self.updates)}

    def averages(self) -> dict[str, Tensor]:
        """The averages by parameter name, not copied."""
        return self._average

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved average of whole tensors; names and shapes must be those of this module."""
        for name, average in self._average.items():
            local(average).copy_(local(share(state[name], average)))
        self.updates = int(state["#updates"].item())
