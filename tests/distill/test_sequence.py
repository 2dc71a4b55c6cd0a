"""Several processes on one batch: values and gradients are those of one process, whatever attention sees."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distill import sequence
from distill.batches import moved
from distill.config import ConfigError
from distill.dry_run import estimate
from distill.flow import FlowBatch, FlowMatching
from distill.parallel import end_processes, make_accelerator
from distill.sequence import shared_batch
from distill.stages.causal import CausalStage
from distill.stages.teacher import TeacherStage
from distill.trainer import Tick, Trainer
from models.context import ChunkPlan
from tests.processes import forget_processes, run_processes
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, NETWORK, causal_run, teacher_run
from tests.toy_stage import final_state


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    forget_processes()


def batches(tmp_path: Path) -> Iterator[tuple[FlowMatching, FlowBatch]]:
    """Random networks with batches whose attention is packed, masked, and full."""
    causal = CausalStage(causal_run(tmp_path), CPU)
    for step in range(4):
        yield causal.module, causal.draw(Tick(step, 0, 0, 1, 1, 0.5))
    wide = copy.deepcopy(causal.module)
    wide.plan = ChunkPlan(2, 2, 2, 4)
    wide._contexts = {}
    yield wide, causal.draw(Tick(1, 0, 0, 1, 1, 0.5))
    teacher = TeacherStage(teacher_run(tmp_path), CPU)
    yield teacher.module, teacher.draw(Tick(2, 0, 0, 1, 1, 0.9))


def gradients(network: FlowMatching, batch: FlowBatch) -> tuple[Tensor, list[Tensor]]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    loss, _ = network(moved(batch, CPU))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    ]


def test_two_processes_have_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = list(batches(tmp_path))
    for number, (network, _) in enumerate(cases):
        randomize(network, number)

    def both() -> None:
        make_accelerator(causal_run(tmp_path))
        for network, batch in cases:
            alone, expected = gradients(network, batch)
            with shared_batch(dist.group.WORLD):
                loss, found = gradients(network, batch)
            torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-6)
            for mine, whole in zip(found, expected, strict=True):
                dist.all_reduce(mine)
                torch.testing.assert_close(mine / 2, whole, rtol=1e-4, atol=1e-5)

    def check() -> None:
        assert run_processes(2, both) == ["", ""]

    backward = sequence._Gathered.backward
    once = staticmethod(lambda ctx, *given: (backward(ctx, *given)[0] / ctx.size, None))
    assert_needs(check, monkeypatch, sequence._Gathered, "backward", once)


def run(config: object, device: object = CPU) -> None:
    accelerator = make_accelerator(config)
    Trainer(config, CausalStage(config, CPU), accelerator).run("none")
    end_processes(accelerator)


@pytest.mark.slow
def test_a_run_that_shares_batches_is_that_of_one_process(tmp_path: Path) -> None:
    config = causal_run(tmp_path, trackers=())
    run(config)
    forget_processes()
    other = replace(config, run_dir=str(tmp_path / "two"), sequence=2)
    assert run_processes(2, run, other) == ["", ""]
    one, two = (final_state(Path(each.run_dir)) for each in (config, other))
    torch.testing.assert_close(two["modules"], one["modules"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_more_processes_than_heads_are_refused(tmp_path: Path) -> None:
    config = causal_run(tmp_path, trackers=(), sequence=3)
    with pytest.raises(ConfigError, match="sequence: expected a divisor of the 1 processes, found 3"):
        run(config)
    errors = run_processes(3, run, config)
    assert all(
        "sequence: expected a divisor of 2 rows of tokens and of 2 heads, found 3" in e for e in errors
    )


def test_patches_that_overlap_are_not_shared_out(tmp_path: Path) -> None:
    """The plan says it before anything is computed."""
    config = causal_run(tmp_path, trackers=(), sequence=2, network=replace(NETWORK, patch_stride=1))
    with pytest.raises(ConfigError, match="sequence: expected 1 where patches overlap, found 2"):
        estimate(config, CausalStage, processes=2)
