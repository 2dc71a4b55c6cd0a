"""A tiny stage for the tests of the trainer; as a script it trains and leaves its last checkpoint."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.checkpoint import latest_checkpoint, load_checkpoint
from distill.config import CheckpointConfig, OptimConfig, PreviewConfig, RunConfig
from distill.parallel import end_processes, make_accelerator
from distill.stage import Stage, Tick
from distill.trainer import Trainer

GLOBAL_BATCH = 8


class ToyNet(nn.Module):
    """A regression net whose loss draws noise from the global generator, as a sampled posterior does."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first, self.hidden, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.noise = noise

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        hidden = torch.tanh(self.hidden(torch.tanh(self.first(x))))
        noisy = hidden + self.noise * torch.randn(hidden.shape)
        loss = (self.last(noisy) - x[:, :3].square()).square().mean()
        return loss, {"input": float(x.mean())}


class ToyStage(Stage):
    """`at` maps a step to a function called when its batch is made."""

    edges = ("first", "last")

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        return {"net": ToyNet(0.0)}, {}

    def __init__(self, noise: float = 0.1, at: dict[int, Any] | None = None) -> None:
        self.net = ToyNet(noise)
        self.at = at or {}
        self.evaluated: list[tuple[int, Tensor]] = []

    def modules(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def batch(self, tick: Tick) -> Tensor:
        generator = torch.Generator().manual_seed(tick.generator_seed("data", shared=True))
        x = torch.randn(GLOBAL_BATCH, 6, generator=generator).chunk(tick.world)[tick.rank]
        if tick.step in self.at:
            result = self.at[tick.step](x)
            return x if result is None else result
        return x

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        self.evaluated.append((step, self.net.hidden.weight.detach().clone()))
        torch.randn(3)
        return {"norm": float(self.net.hidden.weight.norm())}

    def export(self, directory: Path) -> None:
        torch.save(self.net.state_dict(), directory / "net.pt")


def toy_config(run_dir: Path, **changes: Any) -> RunConfig:
    """Six steps without triggers."""
    config = RunConfig(
        stage="toy",
        run_dir=str(run_dir),
        max_steps=6,
        seed=3,
        log_every=1,
        trackers=(),
        optim=OptimConfig(warmup_steps=2, decay_fraction=0.5),
        checkpoint=CheckpointConfig(every_steps=None, every_minutes=None),
        preview=PreviewConfig(every_minutes=None, at_end=False),
    )
    return replace(config, **changes)


def toy_trainer(config: RunConfig, stage: ToyStage, **options: Any) -> Trainer:
    """A trainer in this process."""
    return Trainer(config, stage, make_accelerator(config), **options)


def final_state(run_dir: Path) -> dict[str, Any]:
    """What the last checkpoint of a run holds."""
    path = latest_checkpoint(run_dir / "checkpoints")
    assert path is not None
    return load_checkpoint(path)[0]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested containers by path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {key: leaf for name, item in items for key, leaf in flat(item, f"{prefix}/{name}").items()}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Equal bit for bit."""
    one, other = flat(left), flat(right)
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


def train(target: Path) -> Accelerator:
    """Train in this process, or as one of several."""
    trainer = toy_trainer(toy_config(target), ToyStage(noise=0.0))
    trainer.run("none")
    if trainer.accelerator.is_main_process:
        (target / "world.txt").write_text(str(trainer.accelerator.num_processes))
    return trainer.accelerator


if __name__ == "__main__":
    end_processes(train(Path(sys.argv[1])))
