"""Streams of the Wan family against the published loop: plain, past evictions, and with a prompt switch."""

from itertools import islice

import pytest
import torch
from torch import Tensor

import models.joint_recache
from models.causal_dit import CausalDiT
from models.context import ChunkPlan, MaskedContext, SequenceFrame
from models.joint_recache import JointRecache
from models.kv_cache import CacheCursor, CacheRing, RopeMode
from streamgen.engine.guidance import Conditioning, Guidance
from streamgen.engine.runner import PlainRunner
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import FlowMatchScheduler
from streamgen.stream.latents import LatentState
from streamgen.stream.prompts import Text
from streamgen.stream.recache import Joint, SinkPolicy
from streamgen.stream.rollout import advance, rollout, settle
from tests.published_stream import PublishedStream, published_levels
from tests.tiny_models import GRID, assert_needs, tiny_cache, tiny_dit, tiny_latents, tiny_ring

STEPS = [1000, 750, 500, 250]
FAMILIES = {
    "self-forcing": (ChunkPlan(3, 3, 0, 18), 21),
    "longlive": (ChunkPlan(3, 3, 3, 6), 12),
    "causal-forcing-frame": (ChunkPlan(1, 1, 0, 20), 21),
}


class Recorded:
    """A NoiseSource that plays draws made elsewhere."""

    identity = "recorded"

    def initial(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + chunk))

    def renoise(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(2000 + 10 * chunk + step))

    def commit(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        raise AssertionError("nothing is drawn for a commit at noise level 0")


def text(seed: int) -> Tensor:
    return torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))


def sampling() -> Sampling:
    return Sampling(FlowMatchScheduler(4, 5.0).sigmas(), renoise=True)


def ours(
    dit: CausalDiT,
    plan: ChunkPlan,
    chunks: int,
    switch: int | None,
    sink: SinkPolicy,
    mode: RopeMode = "absolute",
) -> Tensor:
    """Latents of a rollout with `text(1)`, from chunk `switch` on with `text(2)` after a joint recache."""
    noise, runner = Recorded(), PlainRunner(dit)
    texts = [Text(name, dit.embed_text(text(seed))) for name, seed in (("one", 1), ("two", 2))]

    def direct(state: LatentState) -> tuple[LatentState, Conditioning, Text]:
        words = texts[int(switch is not None and state.chunk >= switch)]
        if state.chunk == switch:
            state = Joint().rebuild(runner, state, noise, sink, words)
        return state, Conditioning(words.context, words.context, None, Guidance(1.0, 0.0)), words

    with torch.no_grad():
        start = LatentState(tiny_ring(dit, plan, rope_mode=mode))
        loop = islice(rollout(runner, start, direct, noise, sampling()), chunks)
        return torch.cat([chunk.latents for _, chunk in loop], 1)


def published(dit: CausalDiT, plan: ChunkPlan, chunks: int, switch: int | None, global_sink: bool) -> Tensor:
    stream = PublishedStream(
        dit, GRID, plan.chunk_frames, plan.attention_frames, plan.sink_frames, global_sink
    )
    shape, draws, out = (1, plan.chunk_frames, 4, GRID[0] * 2, GRID[1] * 2), Recorded(), []
    with torch.no_grad():
        for i in range(chunks):
            words = text(2 if switch is not None and i >= switch else 1)
            if i == switch:
                stream.recache(words)
            renoise = lambda step, i=i: draws.renoise(i, step, shape)  # noqa: E731
            out.append(stream.generate(draws.initial(i, shape), words, STEPS, 5.0, renoise))
    return torch.cat(out, 1)


def test_noise_levels_are_the_published_ones() -> None:
    """1000, 937.5, 833.33, 625: the closed form of the shift, and the warped table lookup."""
    times, sigmas = published_levels(STEPS, 5.0)
    assert times == pytest.approx([1000, 937.5, 833.3333, 625], abs=1e-3)
    own = FlowMatchScheduler(4, 5.0).sigmas()
    assert own == pytest.approx([*sigmas, 0.0], abs=1e-6)
    assert own == pytest.approx([5 * s / (1 + 4 * s) for s in (1, 0.75, 0.5, 0.25, 0)], abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_rollout_equals_the_published_loop(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, attention = FAMILIES[family]
    assert plan.attention_frames == attention
    dit = tiny_dit(0)
    chunks = attention // plan.chunk_frames + 3
    expected = published(dit, plan, chunks, None, True)

    def check() -> None:
        assert (ours(dit, plan, chunks, None, "keep") - expected).abs().max() < 1e-4

    slot = lambda self, frame: min(frame, self.plan.attention_frames - 1)  # noqa: E731
    assert_needs(check, monkeypatch, CacheRing, "slot", slot)


@pytest.mark.parametrize("switch", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("sink", ["keep", "refresh"])
def test_switch_equals_the_published_loop(
    sink: SinkPolicy, switch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LongLive's recache before, at and after the first eviction, with the sink kept (the published
    inference) and replaced (global_sink false).
    """
    dit, (plan, _) = tiny_dit(0), FAMILIES["longlive"]
    expected = published(dit, plan, switch + 3, switch, sink == "keep")

    def check() -> None:
        assert (ours(dit, plan, switch + 3, switch, sink) - expected).abs().max() < 1e-4

    assert_needs(check, monkeypatch, JointRecache, "_write", lambda self, *rest: None)


def test_kept_sink_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    dit, (plan, _) = tiny_dit(0), FAMILIES["longlive"]
    expected = published(dit, plan, 8, 6, True)

    def check() -> None:
        assert (ours(dit, plan, 8, 6, "keep") - expected).abs().max() < 1e-4

    assert_needs(check, monkeypatch, LatentState, "whole", True)


def test_relative_positions_are_the_absolute_ones_until_the_first_eviction() -> None:
    dit, (plan, _) = tiny_dit(0), FAMILIES["longlive"]
    short = ours(dit, plan, 4, 3, "keep", "relative")
    assert (short - ours(dit, plan, 4, 3, "keep", "absolute")).abs().max() < 1e-5
    late = ours(dit, plan, 9, 7, "keep", "relative")
    assert (late - ours(dit, plan, 9, 7, "keep", "absolute")).abs().max() > 1e-4
    assert bool(late.isfinite().all())


def test_joint_recache_refuses_a_span_it_cannot_have() -> None:
    ring = tiny_ring(tiny_dit(0), ChunkPlan(3, 3, 3, 6))
    with pytest.raises(ValueError, match="expected 1 to 12 latent frames, found 13"):
        models.joint_recache.JointRecache(ring, CacheCursor(30), 13, True)


def test_commit_noise_none_is_a_timestep_alone() -> None:
    """The published inference gives the context pass a timestep and leaves its input clean."""
    dit, plan = tiny_dit(0), ChunkPlan(1, 1, 0, 2)
    words = Text("one", dit.embed_text(text(1)))
    conditioning = Conditioning(words.context, words.context, None, Guidance(1.0, 0.0))
    levels = Sampling((1.0, 0.0), context_sigma=0.1, commit_noise=False)
    clean, runner, noise = tiny_latents(1, 3), PlainRunner(dit), Recorded()
    with torch.no_grad():
        state = LatentState(tiny_ring(dit, plan))
        state, _ = advance(runner, state, conditioning, words, noise, levels, given=clean)
        state = settle(runner, state, noise)
        other = tiny_cache(dit, plan)
        other.begin(1)
        dit(clean, torch.full((1, 1), 100.0), words.context, other)
        other.commit()
    assert torch.equal(state.ring.state(state.cursor)["keys"], other.state()["keys"])


@pytest.mark.parametrize("mode", ["absolute", "relative"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_masked_at_every_familys_window(
    family: str, mode: RopeMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Velocities of all chunks over committed clean ones, past evictions, and the same from one forward."""
    dit, (plan, attention) = tiny_dit(0), FAMILIES[family]
    frames = attention + 3 * plan.chunk_frames
    noisy, clean = tiny_latents(frames, 1), tiny_latents(frames, 2)
    words, level = dit.embed_text(text(1)), torch.full((1, frames), 600.0)

    @torch.no_grad()
    def check() -> None:
        cache, out = tiny_cache(dit, plan, rope_mode=mode), []
        for x, z, t in zip(*(y.split(plan.chunk_frames, 1) for y in (noisy, clean, level)), strict=True):
            cache.begin(x.shape[1])
            out.append(dit(x, t, words, cache))
            dit(z, torch.zeros_like(t), words, cache)
            cache.commit()
        roles = [(i, role) for role in (False, True) for i in range(frames)]
        sequence = [SequenceFrame(i, context=not noised, target=noised) for i, noised in roles]
        context = MaskedContext(dit.rope, sequence, plan, GRID, noisy.device, relative=mode == "relative")
        levels = torch.cat([torch.zeros_like(level), level], 1)
        masked = dit(torch.cat([clean, noisy], 1), levels, words, context)[:, frames:]
        assert (torch.cat(out, 1) - masked).abs().max() < 1e-5

    slot = lambda self, frame: min(frame, self.plan.attention_frames - 1)  # noqa: E731
    assert_needs(check, monkeypatch, CacheRing, "slot", slot)
