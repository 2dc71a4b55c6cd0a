"""Which attention kernel is taken where, and that on CPUs no scores are written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models.attention
from models.attention import attend, chosen_backend
from models.context import ChunkPlan
from streamgen.engine.attention import (
    attention_kernels,
    attention_scope,
    attention_text,
    kernel_order,
    own_attention_text,
)
from tests.tiny_models import GRID, assert_needs, tiny_cache, tiny_dit, tiny_latents

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "view" not in str(func) and "expand" not in str(func):
            sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
            self.numbers = max(self.numbers, *sizes, 0)
        return out


def test_no_scores_are_written_out_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk over a long window: nothing that a pass makes is as large as one layer's scores."""
    dit = tiny_dit()
    cache = tiny_cache(dit, ChunkPlan(8, 8, 0, 400))
    text = dit.embed_text(torch.randn(1, 5, 8))
    frames, held = 8, 400

    @torch.no_grad()
    def check() -> None:
        cache.begin(frames)
        assert cache.view is not None
        cache.view.end = cache.ring.keys.shape[2]
        with Largest() as largest:
            dit(tiny_latents(frames), torch.full((1, frames), 500.0), text, cache)
        tokens = GRID[0] * GRID[1]
        assert largest.numbers < dit.config.heads * (frames * tokens) * (held * tokens)

    assert_needs(check, monkeypatch, models.attention, "chosen_backend", lambda *_: "explicit")


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("masked", [False, True])
def test_both_ways_are_the_same_attention(width: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, width, generator=generator, requires_grad=True) for n in (7, 11, 11))
    mask = torch.rand(7, 11, generator=generator) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
    found = []
    for backend in ("explicit", "sdpa"):
        out = attend(q, k, v, mask, backend)  # type: ignore[arg-type]
        found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_what_is_chosen_on_cpus() -> None:
    assert chosen_backend("cpu", 64, 64) == "sdpa"
    # the doubled keys of a masked context, which torch's CPU kernel does not take
    assert chosen_backend("cpu", 128, 64) == "explicit"
    assert chosen_backend("cuda", 128, 64) == "sdpa"
    assert chosen_backend("cpu", 64, 64, half_trained=True) == "explicit"
    assert chosen_backend("cuda", 64, 64, half_trained=True) == "sdpa"
    cpu = torch.device("cpu")
    assert attention_kernels(cpu, torch.float32, 64) == ()
    assert "fused" in attention_text(cpu, torch.float32, 64)
    assert own_attention_text(64).startswith(("cpu: ", "cuda"))


@pytest.mark.parametrize(
    ("capability", "there", "expected"),
    [
        ((9, 0), (CUDNN, FLASH, EFFICIENT), (CUDNN, FLASH, EFFICIENT, MATH)),
        ((10, 0), (FLASH, EFFICIENT), (FLASH, EFFICIENT, MATH)),
        ((8, 6), (CUDNN, FLASH, EFFICIENT), (FLASH, CUDNN, EFFICIENT, MATH)),
        # float32
        ((9, 0), (EFFICIENT,), (EFFICIENT, MATH)),
        ((7, 5), (), (MATH,)),
    ],
)
def test_order_of_kernels_on_gpus(
    capability: tuple[int, int], there: tuple[SDPBackend, ...], expected: tuple[SDPBackend, ...]
) -> None:
    usable: Callable[[SDPBackend], bool] = there.__contains__
    assert kernel_order(capability, usable) == expected


def test_a_scope_restricts_torch_while_it_lasts() -> None:
    enabled = torch.backends.cuda.flash_sdp_enabled
    before = enabled()
    with attention_scope((MATH,)):
        assert not enabled()
    assert enabled() == before
    with attention_scope(()):
        assert enabled() == before
