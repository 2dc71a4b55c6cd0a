"""Muon's steps: torch's own, in the precision the device is fast in."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import distill.muon
from distill.config import RunConfig
from distill.muon import Muon, orthogonal
from distill.precision import settled
from tests.tiny_models import assert_needs

COEFFICIENTS = (3.4445, -4.775, 2.0315)
SHAPES = ((24, 24), (24, 12), (12, 24), (24, 24))


def trained(make: Callable[..., torch.optim.Optimizer]) -> list[Tensor]:
    """Matrices after three updates with the same gradients; one has none in the second."""
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = make(matrices, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True)
    for update in range(3):
        for index, matrix in enumerate(matrices):
            gradient = torch.randn(matrix.shape, generator=generator)
            matrix.grad = None if (update, index) == (1, 0) else gradient
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


@pytest.mark.parametrize("fast", [True, False])
def test_updates_are_those_of_torch(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what bfloat16 leaves of an update; not so for plain steps of the gradient."""
    monkeypatch.setattr(distill.muon, "multiplies_bfloat16", lambda device: fast)
    expected = trained(torch.optim.Muon)

    def check() -> None:
        for ours, theirs in zip(trained(Muon), expected, strict=True):
            assert (ours - theirs).abs().max() < 0.006

    assert_needs(check, monkeypatch, distill.muon, "orthogonal", lambda matrices, *_: matrices)


def test_float32_where_bfloat16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(1))
    found = {}
    for fast in (True, False):
        monkeypatch.setattr(distill.muon, "multiplies_bfloat16", lambda device, fast=fast: fast)
        found[fast] = orthogonal(matrices, COEFFICIENTS, 5, 1e-7)
        values = torch.linalg.svdvals(found[fast])
        assert values.min() > 0.6
        assert values.max() < 1.3
    assert not torch.equal(found[True], found[False])
    assert torch.equal(found[True], found[True].bfloat16().float())


def test_state_is_interchangeable_with_that_of_torch() -> None:
    """Checkpoints from before go on."""
    matrix = nn.Parameter(torch.eye(4))
    matrix.grad = torch.ones(4, 4)
    theirs, ours = torch.optim.Muon([matrix], lr=0.1), Muon([matrix], lr=0.1)
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.state[matrix]["momentum_buffer"], theirs.state[matrix]["momentum_buffer"])
    ours.step()


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_the_device_is_fast_in(
    fast: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.precision.multiplies_bfloat16", lambda device: fast)
    config = RunConfig("toy", "runs/toy", 1, 0, precision="auto")
    assert settled(config, torch.device("cpu")).precision == precision
    fixed = RunConfig("toy", "runs/toy", 1, 0, precision="fp32")
    assert settled(fixed, torch.device("cpu")) is fixed
