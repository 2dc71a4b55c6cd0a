"""Invariant 8: in a training rollout the chunk's own keys carry gradient, committed context carries none, the
exit step alone does.
"""

from itertools import islice

import pytest
import torch
from torch import Tensor

import models.kv_cache
import streamgen.engine.sampler
from models.attention import attend
from models.context import ChunkPlan
from models.kv_cache import CacheCursor
from streamgen.engine.guidance import Conditioning, Guidance
from streamgen.engine.noise import SeededNoise
from streamgen.engine.runner import CommitTask, PlainRunner
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import FlowMatchScheduler
from streamgen.stream.latents import LatentChunk, LatentState
from streamgen.stream.prompts import Text
from streamgen.stream.rollout import advance, rollout
from tests.tiny_models import assert_needs, tiny_dit, tiny_ring

PLAN = ChunkPlan(2, 2, 2, 2)
SIGMAS = FlowMatchScheduler(3, 2.0).sigmas()


class Stream:
    """A differentiable rollout of a double-precision model with its own noise."""

    def __init__(self, exit_step: int | None = None) -> None:
        self.dit = tiny_dit().double()
        self.text = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(5)).double()
        self.exit_step = exit_step

    def told(self) -> tuple[Conditioning, Text]:
        context = self.dit.embed_text(self.text)
        return Conditioning(context, context, None, Guidance(1.0, 0.0)), Text("words", context.detached())

    def run(self, chunks: int, sampling: Sampling) -> list[tuple[LatentState, LatentChunk]]:
        conditioning, text = self.told()
        noise = SeededNoise(3, torch.device("cpu"), torch.float64)
        state = LatentState(tiny_ring(self.dit, PLAN))
        loop = rollout(PlainRunner(self.dit), state, lambda now: (now, conditioning, text), noise, sampling)
        return list(islice(loop, chunks))

    def chunks(self, count: int) -> list[LatentChunk]:
        sampling = Sampling(SIGMAS, renoise=True, exit_step=self.exit_step, with_gradient=True)
        return [chunk for _, chunk in self.run(count, sampling)]

    def loss_over(self, state: LatentState) -> Tensor:
        """A fixed function of the next chunk's latents, over a context that is what it is."""
        noise = SeededNoise(3, torch.device("cpu"), torch.float64)
        sampling = Sampling(SIGMAS, renoise=True, exit_step=self.exit_step, with_gradient=True)
        _, chunk = advance(PlainRunner(self.dit), state, *self.told(), noise, sampling)
        latents = chunk.latents
        return (latents * torch.linspace(-1, 1, latents.numel(), dtype=torch.float64).view_as(latents)).sum()

    def after(self, chunks: int) -> LatentState:
        """The state of a stream of so many chunks."""
        with torch.no_grad():
            return self.run(chunks, Sampling(SIGMAS))[-1][0]


def finite_difference(
    stream: Stream, state: LatentState, weight: Tensor, index: tuple[int, int], step: float = 1e-6
) -> float:
    """Central difference of the next chunk's loss in double precision, its context held fixed."""
    values = []
    for sign in (1, -1):
        weight.data[index] += sign * step
        values.append(float(stream.loss_over(state).detach()))
        weight.data[index] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def test_own_key_and_value_weights_match_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        stream = Stream(exit_step=0)
        state = stream.after(3)
        stream.loss_over(state).backward()
        for layer in range(2):
            attention = stream.dit.blocks[layer].self_attn
            for linear in (attention.k, attention.v, attention.q):
                grad = linear.weight.grad
                assert grad is not None
                for index in ((0, 0), (3, 5), (11, 7)):
                    expected = finite_difference(stream, state, linear.weight, index)
                    assert abs(float(grad[index]) - expected) < 1e-6 * max(1.0, abs(expected))

    original = attend

    def cut(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        return original(q, k.detach(), v.detach(), *rest)  # type: ignore[arg-type]

    assert_needs(check, monkeypatch, models.kv_cache, "attend", cut)


def test_no_gradient_flows_into_committed_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss on chunk 2 may depend on chunk 1 only through detached keys."""

    def check() -> None:
        stream = Stream()
        chunks = stream.chunks(3)
        grads = torch.autograd.grad(chunks[2].latents.sum(), chunks[1].latents, allow_unused=True)
        assert grads[0] is None or float(grads[0].abs().max()) == 0.0
        assert not stream_cache_has_history(stream)

    def live_commit(self: PlainRunner, task: CommitTask) -> CacheCursor:
        """The published defect: committed keys keep their history."""
        task.ring.keys = task.ring.keys + self.dit.head.head.weight.sum()
        return task.cursor.moved(task.frames)

    assert_needs(check, monkeypatch, PlainRunner, "commit", live_commit)


def stream_cache_has_history(stream: Stream) -> bool:
    """Whether the cache of a rollout ends up attached to the graph."""
    state, _ = stream.run(3, Sampling(SIGMAS, renoise=True, with_gradient=True))[-1]
    return state.ring.keys.requires_grad or state.ring.values.requires_grad


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_only_the_exit_step_carries_gradient(exit_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def check() -> None:
        calls.clear()

        def velocity(x: Tensor, sigma: float) -> Tensor:
            calls.append(torch.is_grad_enabled())
            return x * weight

        weight = torch.ones(1, requires_grad=True)
        noise = torch.ones(1, 1, 1, 1, 1)
        out = streamgen.engine.sampler.denoise_chunk(
            velocity, noise, SIGMAS, lambda i: noise, exit_step, with_gradient=True
        )
        assert calls == [i == exit_step for i in range(exit_step + 1)]
        (grad,) = torch.autograd.grad(out.sum(), weight)
        # x is constant at the exit step, so d(x - sigma w x)/dw is -sigma x
        x = noise
        for i in range(exit_step):
            x = (1 - SIGMAS[i + 1]) * (x - SIGMAS[i] * x) + SIGMAS[i + 1] * noise
        assert float((grad + SIGMAS[exit_step] * x.sum()).abs()) < 1e-6

    always = torch.enable_grad
    if exit_step:
        assert_needs(check, monkeypatch, torch, "set_grad_enabled", lambda mode: always())
    check()


def test_training_rollout_equals_the_inference_rollout() -> None:
    stream = Stream()
    with_gradient = torch.cat([c.latents for c in stream.chunks(4)], 1)
    with torch.no_grad():
        without = torch.cat([c.latents for c in stream.chunks(4)], 1)
    assert (with_gradient - without).abs().max() < 1e-10
