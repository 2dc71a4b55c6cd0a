"""Which attention kernel is taken where, and that on CPUs no scores are written out."""

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import (
    SDPBackend,
    _registry,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models.attention
from models.attention import attend, chosen_backend
from models.context import ChunkPlan
from streamgen.engine import attention as chosen
from streamgen.engine.attention import (
    ATTENTION_VARIABLE,
    attention_kernels,
    attention_scope,
    attention_text,
    kernel_order,
    own_attention_text,
    place_flash,
    sage_attention,
)
from streamgen.errors import InputError
from streamgen.machine import versions
from tests.tiny_models import GRID, assert_needs, tiny_cache, tiny_dit, tiny_latents

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
FLASH_OPERATION = "aten::_scaled_dot_product_flash_attention"
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


def test_a_scope_restricts_torch_while_it_lasts_and_says_the_order() -> None:
    enabled, order = torch.backends.cuda.flash_sdp_enabled, torch._C._get_sdp_priority_order
    before = enabled(), order()
    with attention_scope((MATH,)):
        assert not enabled()
    assert (enabled(), order()) == before
    for wanted in ((EFFICIENT, FLASH, MATH), (FLASH, EFFICIENT, MATH)):
        with attention_scope(wanted):
            assert order()[:3] == [kernel.value for kernel in wanted]
    with attention_scope(()):
        assert (enabled(), order()) == before


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Packages of attention that seem to be installed, and nothing of theirs left behind."""
    there: set[str] = set()
    # what is registered here is unknown to other tests, and what others have registered to these
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", dict(_registry._FLASH_ATTENTION_IMPLS))
    _registry._FLASH_ATTENTION_IMPLS.pop("SageAttention", None)
    monkeypatch.delenv(ATTENTION_VARIABLE, raising=False)
    monkeypatch.setattr(chosen, "find_spec", lambda name: name if name in there else None)
    yield there
    if current_flash_attention_impl() is not None:
        restore_flash_attention_impl()


class Stand:
    """What stands in for torch's FlashAttention and does nothing."""

    def remove(self) -> None:
        pass


def test_flash_attention_3_stands_in_where_it_is(packages: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", Stand)
    assert place_flash((9, 0)) is None
    packages.add("flash_attn_interface")
    assert place_flash(None) is place_flash((10, 0)) is place_flash((8, 6)) is None
    assert "attention" not in versions()
    assert place_flash((9, 0)) == current_flash_attention_impl() == versions()["attention"] == "FA3"
    assert kernel_order((9, 0), lambda kernel: True, replaced=True)[0] == FLASH
    monkeypatch.setenv(ATTENTION_VARIABLE, "torch")
    assert place_flash((9, 0)) is current_flash_attention_impl() is None

    def broken() -> Stand:
        raise ImportError("undefined symbol")

    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", broken)
    monkeypatch.setenv(ATTENTION_VARIABLE, "auto")
    assert place_flash((9, 0)) is None


def test_sage_attention_stands_in_where_it_is_asked_for(
    packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sageattn(*told: Tensor, tensor_layout: str, is_causal: bool, sm_scale: float | None) -> Tensor:
        assert tensor_layout == "NHD"
        q, k, v = (x.transpose(1, 2) for x in told)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=sm_scale)
        return out.transpose(1, 2).contiguous()

    packages.add("sageattention")
    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sageattn))
    assert place_flash((9, 0)) is None
    monkeypatch.setenv(ATTENTION_VARIABLE, "sage")
    before = torch._C._dispatch_dump(FLASH_OPERATION)
    assert place_flash((8, 6)) == current_flash_attention_impl() == "SageAttention"
    # no CUDA is here to call it by
    (placed,) = {*torch._C._dispatch_dump(FLASH_OPERATION).splitlines()} - {*before.splitlines()}
    assert placed.startswith("CUDA: ")
    assert "engine/attention.py" in placed
    q, k, v = (torch.randn(2, n, 3, 16).transpose(1, 2) for n in (5, 7, 7))
    out, sums, *_ = sage_attention(q, k, v)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))
    told = [x.to("meta") for x in (q, k, v)]
    meta, meta_sums, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*told)
    assert (out.shape, out.stride(), sums.shape) == (meta.shape, meta.stride(), meta_sums.shape)
    # a backward pass would need it
    assert bool(sums.isnan().all())
    restore_flash_attention_impl()
    assert torch._C._dispatch_dump(FLASH_OPERATION) == before


@pytest.mark.parametrize(
    ("asked", "capability", "why"),
    [
        ("sgae", (9, 0), r"unknown attention 'sgae' .did you mean 'sage'"),
        ("sage", (9, 0), "attention sage: needs the package sageattention"),
        ("fa3", (9, 0), "attention fa3: needs the package flash_attn_interface"),
        ("fa3", (8, 6), r"attention fa3: runs on compute capability 9.x, the device has 8\.6"),
        ("fa3", None, "attention fa3: runs on CUDA devices"),
    ],
)
def test_attention_that_cannot_be_had(
    asked: str, capability: tuple[int, int] | None, why: str,
    packages: set[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(ATTENTION_VARIABLE, asked)
    with pytest.raises(InputError, match=why):
        place_flash(capability)
