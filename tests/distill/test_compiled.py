"""Blocks as programs: the same numbers, one program for all layers, also where parameters are shared out."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import parallel, sharding
from distill.compiled import as_written, compile_blocks
from distill.config import ConfigError
from distill.sharding import ShardedModule
from models.causal_dit import CausalDiT
from models.context import BidirectionalContext
from tests.processes import forget_processes, run_processes
from tests.tiny_models import tiny_dit
from tests.toy_distillation import distillation_config


class Counter:
    """A compiler that leaves graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch.compiler.reset()
    forget_processes()


def velocity(dit: CausalDiT, frames: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, frames, 4, 4, 6, generator=generator)
    text = dit.embed_text(torch.randn(1, 3, 8, generator=generator))
    context = BidirectionalContext(dit.rope, frames, (2, 3), torch.device("cpu"))
    return dit(latents, torch.full((1, frames), 500.0), text, context)


def gradients(dit: nn.Module) -> dict[str, Tensor]:
    return {name: sharding.whole(p.grad) for name, p in dit.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_programs_give_the_same_and_are_shared_by_layers() -> None:
    plain, dit, counter = tiny_dit(layers=3), tiny_dit(layers=3), Counter()
    assert compile_blocks(dit, counter) == 3
    assert list(dit.state_dict()) == list(plain.state_dict())
    for network in (plain, dit):
        velocity(network).square().mean().backward()
    assert counter.graphs == 3
    torch.testing.assert_close(gradients(dit), gradients(plain))
    # another size is another program, unless blocks are to be computed as written
    with as_written(True):
        velocity(dit, 3)
    assert counter.graphs == 3
    torch.testing.assert_close(velocity(dit, 3), velocity(plain, 3))
    assert counter.graphs == 6
    # a copy has parameters of its own
    other = copy.deepcopy(dit)
    with torch.no_grad():
        other.blocks[0].ffn[0].weight.add_(1.0)  # type: ignore[union-attr, index]
    assert not torch.allclose(velocity(other), velocity(plain))
    torch.testing.assert_close(velocity(dit), velocity(plain))


def test_a_writer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compile: expected false with rollout\.writer, found True"):
        compile_blocks(tiny_dit(writer=2))


@pytest.mark.slow
def test_programs_of_shared_out_parameters() -> None:
    """Two processes with a share of every parameter each have the gradients of one without programs."""
    expected = tiny_dit()
    velocity(expected).square().mean().backward()

    def check() -> None:
        accelerator = parallel.make_accelerator(distillation_config(Path("unused")))
        mesh = parallel.Parallel(accelerator, "fsdp2").mesh
        assert mesh is not None
        dit, counter = tiny_dit(), Counter()
        compile_blocks(dit, counter)
        ShardedModule(dit, mesh)
        velocity(dit).square().mean().backward()
        assert counter.graphs == 3
        torch.testing.assert_close(gradients(dit), gradients(expected), rtol=1e-4, atol=1e-6)

    assert run_processes(2, check) == ["", ""]
