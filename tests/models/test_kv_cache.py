"""Invariants 1, 3, 5 of the DiT: causality, cached = masked, constant work; ring, sink and ranks against a
naive oracle.
"""

import pytest
import torch
from torch import Tensor

from models.attention import attend
from models.causal_dit import CausalDiT
from models.context import BidirectionalContext, ChunkPlan, MaskedContext, SequenceFrame, sequence_mask
from models.kv_cache import CacheCursor, CacheRing, CacheView
from models.rope import RotaryEmbedding3D, rotate
from tests.tiny_models import (
    GRID,
    DrivenCache,
    assert_needs,
    tiny_cache,
    tiny_dit,
    tiny_latents,
    tiny_ring,
)

PLANS = [
    ChunkPlan(1, 1, 1, 3),
    ChunkPlan(2, 2, 2, 4),
    ChunkPlan(3, 1, 4, 3),
    ChunkPlan(3, 3, 0, 6),
    ChunkPlan(2, 1, 0, 4),
    ChunkPlan(2, 2, 2, 0),
]


def text_of(dit: CausalDiT, batch: int = 1, seed: int = 5) -> Tensor:
    return torch.randn(batch, 5, dit.config.text_dim, generator=torch.Generator().manual_seed(seed))


def cached_velocities(
    dit: CausalDiT, plan: ChunkPlan, chunks: int, noisy: Tensor, clean: Tensor, motion: Tensor
) -> Tensor:
    """Velocity of each chunk at t = 600 over the committed clean past, as a stream computes it."""
    cache, text = tiny_cache(dit, plan, batch=len(noisy)), dit.embed_text(text_of(dit, len(noisy)))
    out = []
    with torch.no_grad():
        for i in range(chunks):
            part = slice(plan.start(i), plan.start(i) + plan.length(i))
            level = torch.full((len(noisy), plan.length(i)), 600.0)
            cache.begin(plan.length(i))
            out.append(dit(noisy[:, part], level, text, cache, motion[:, part]))
            dit(clean[:, part], torch.zeros_like(level), text, cache, motion[:, part])
            cache.commit()
    return torch.cat(out, 1)


def masked_velocities(
    dit: CausalDiT, plan: ChunkPlan, noisy: Tensor, clean: Tensor, motion: Tensor
) -> Tensor:
    """The same numbers from one forward over the clean and the noisy sequence."""
    n = noisy.shape[1]
    frames = [SequenceFrame(i, target=False) for i in range(n)] + [
        SequenceFrame(i, context=False) for i in range(n)
    ]
    context = MaskedContext(dit.rope, frames, plan, GRID, noisy.device)
    level = torch.cat([torch.zeros(len(noisy), n), torch.full((len(noisy), n), 600.0)], 1)
    with torch.no_grad():
        both = torch.cat([clean, noisy], 1)
        return dit(
            both, level, dit.embed_text(text_of(dit, len(noisy))), context, torch.cat([motion, motion], 1)
        )[:, n:]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_cached_rollout_equals_masked_forward(plan: ChunkPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    dit = tiny_dit()
    chunks = 8
    frames = plan.start(chunks)
    noisy, clean = tiny_latents(frames, 1, batch=2), tiny_latents(frames, 2, batch=2)
    motion = tiny_latents(frames, 3, batch=2, channels=3)

    def check() -> None:
        cached = cached_velocities(dit, plan, chunks, noisy, clean, motion)
        masked = masked_velocities(dit, plan, noisy, clean, motion)
        assert (cached - masked).abs().max() < 1e-5

    if plan.sink_frames and plan.window_frames:
        assert_needs(check, monkeypatch, CacheView, "rotate_sink", lambda self, layer: None)
    if plan.window_frames:
        # the oldest window frame is not overwritten: a ring that forgets to turn
        slot = lambda self, frame: min(frame, self.plan.attention_frames - 1)  # noqa: E731
        assert_needs(check, monkeypatch, CacheRing, "slot", slot)
    check()


def test_sink_and_window_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that attends to itself alone gives other numbers, so the equality above is about the
    context.
    """
    dit, plan = tiny_dit(), ChunkPlan(1, 1, 1, 3)
    noisy, clean, motion = tiny_latents(7, 1), tiny_latents(7, 2), tiny_latents(7, 3, channels=3)

    def check() -> None:
        cached = cached_velocities(dit, plan, 7, noisy, clean, motion)
        assert (cached - masked_velocities(dit, plan, noisy, clean, motion)).abs().max() < 1e-5

    written = CacheView.attend

    def forgetful(self: CacheView, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = written(self, layer, q, k, v)
        for _, place in self.places:
            self.ring.keys[layer, :, place] = 0
        return out

    assert_needs(check, monkeypatch, CacheView, "attend", forgetful)


class NaiveCache:
    """Oracle: keeps every key unrotated for ever and rotates all of them by rank in every call."""

    def __init__(self, rope: RotaryEmbedding3D, plan: ChunkPlan) -> None:
        self.rope, self.plan = rope, plan
        self.past: list[list[tuple[Tensor, Tensor]]] = [[], []]
        self.present: list[tuple[Tensor, Tensor] | None] = [None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = GRID[0] * GRID[1]
        self.present[layer] = (k, v)
        n = len(self.past[layer])
        sink = min(n, self.plan.sink_frames)
        held = self.past[layer][:sink] + self.past[layer][max(sink, n - self.plan.window_frames) :]
        keys = torch.cat([*(key for key, _ in held), k], 1)
        values = torch.cat([*(value for _, value in held), v], 1)
        tables = self.rope.tables(torch.arange(keys.shape[1] // tokens), *GRID)
        now = self.rope.tables(torch.arange(len(held), len(held) + k.shape[1] // tokens), *GRID)
        return attend(rotate(q, now), rotate(keys, tables), values)

    def commit(self) -> None:
        tokens = GRID[0] * GRID[1]
        for layer, present in enumerate(self.present):
            assert present is not None
            self.past[layer] += list(zip(*(x.split(tokens, 1) for x in present), strict=True))


@pytest.mark.parametrize("plan", PLANS[:4], ids=str)
def test_ranks_equal_a_cache_that_rotates_every_key(plan: ChunkPlan) -> None:
    dit, chunks = tiny_dit(), 12
    noisy, clean = tiny_latents(plan.start(chunks), 1), tiny_latents(plan.start(chunks), 2)
    motion = tiny_latents(plan.start(chunks), 3, channels=3)
    cached = cached_velocities(dit, plan, chunks, noisy, clean, motion)
    naive, text, out = NaiveCache(dit.rope, plan), dit.embed_text(text_of(dit)), []
    with torch.no_grad():
        for i in range(chunks):
            part = slice(plan.start(i), plan.start(i) + plan.length(i))
            level = torch.full((1, plan.length(i)), 600.0)
            out.append(dit(noisy[:, part], level, text, naive, motion[:, part]))
            dit(clean[:, part], torch.zeros_like(level), text, naive, motion[:, part])
            naive.commit()
    assert (cached - torch.cat(out, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("turns", [700_000, 10_000_000], ids=["2 million frames", "30 million frames"])
def test_stream_time_of_millions_stays_exact(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose ring has turned many times gives the velocities of one whose ring has turned once.

    The cursor is set forward behind the sink, where the window is still empty, by whole turns: both streams
    then do the same work in the same slots, and differ in the time of their window alone, which must not
    matter. With angles in float32 it does: little after six days (2 million latent frames at 4 a second), and
    beyond 2^24 neighbouring frames have one time.
    """
    latents, level, plan = tiny_latents(8, 1), torch.zeros(1, 1), ChunkPlan(1, 1, 1, 3)

    def velocities(turns: int) -> Tensor:
        # made here, so that its frequencies are of the precision that is tested
        dit = tiny_dit()
        cache, text, out = tiny_cache(dit, plan), dit.embed_text(text_of(dit)), []
        with torch.no_grad():
            for i in range(8):
                if i == 1:
                    # whole turns of the ring: window and chunk in work
                    cache.cursor = CacheCursor(1 + turns * (plan.window_frames + plan.chunk_frames))
                cache.begin(1)
                out.append(dit(latents[:, i : i + 1], level, text, cache))
                cache.commit()
        return torch.cat(out, 1)

    def check() -> None:
        assert (velocities(turns) - velocities(1)).abs().max() < 1e-5

    assert_needs(check, monkeypatch, torch, "float64", torch.float32)


def test_causality_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 1: a changed latent frame changes nothing before its chunk, bit for bit."""
    dit, plan = tiny_dit(), ChunkPlan(2, 2, 2, 2)
    frames = [SequenceFrame(i) for i in range(8)]
    latents, level = tiny_latents(8, 1), torch.full((1, 8), 300.0)
    changed = latents.clone()
    changed[:, 4] += 1.0

    def check() -> None:
        context = MaskedContext(dit.rope, frames, plan, GRID, latents.device)
        with torch.no_grad():
            a, b = (dit(x, level, dit.embed_text(text_of(dit)), context) for x in (latents, changed))
        assert torch.equal(a[:, :4], b[:, :4])
        assert not torch.equal(a[:, 6:], b[:, 6:])

    everywhere = lambda frames, plan: torch.ones(len(frames), len(frames), dtype=torch.bool)  # noqa: E731
    import models.context

    assert_needs(check, monkeypatch, models.context, "sequence_mask", everywhere)


def test_constant_memory_key_lengths_and_positions() -> None:
    """Invariant 5 over 300 chunks."""
    dit, plan = tiny_dit(), ChunkPlan(1, 1, 1, 3)
    cache, text = tiny_cache(dit, plan), dit.embed_text(text_of(dit))
    before = cache.ring.allocated_bytes()
    pointer = cache.ring.keys.data_ptr()
    sizes = []
    with torch.no_grad():
        for i in range(300):
            cache.begin(1)
            dit(tiny_latents(1, i), torch.zeros(1, 1), text, cache)
            cache.commit()
            sizes.append(sum(x.numel() for x in cache.state().values()))
    assert cache.ring.allocated_bytes() == before == cache.ring.shape.cache_bytes(plan, torch.float32)
    assert cache.ring.keys.data_ptr() == pointer
    assert len(set(sizes[4:])) == 1
    assert cache.ring.context_frames(cache.cursor) == plan.context_frames
    newest, oldest = cache.cursor.frames, cache.ring.sink_shift(cache.cursor)
    assert newest - oldest <= plan.attention_frames


def test_state_round_trip_is_bit_exact() -> None:
    dit, plan = tiny_dit(), ChunkPlan(2, 2, 2, 4)
    text = dit.embed_text(text_of(dit))

    def step(cache: DrivenCache, i: int) -> Tensor:
        with torch.no_grad():
            cache.begin(2)
            out = dit(tiny_latents(2, i), torch.zeros(1, 2), text, cache)
            cache.commit()
        return out

    for n in (1, 2, 3, 4, 7):
        cache = tiny_cache(dit, plan)
        for i in range(n):
            step(cache, i)
        other = tiny_cache(dit, plan)
        other.ring.load_state(cache.cursor, cache.state())
        other.cursor = cache.cursor
        for i in range(n, n + 4):
            assert torch.equal(step(cache, i), step(other, i))
    with pytest.raises(ValueError, match="expected keys of shape"):
        tiny_ring(dit, ChunkPlan(1, 1, 1, 2)).load_state(cache.cursor, cache.state())
    with pytest.raises(ValueError, match="expected sink_keys of shape"):
        tiny_ring(dit, plan).load_state(cache.cursor, cache.state() | {"sink_keys": cache.state()["keys"]})


def test_absolute_positions_end_with_a_clear_error() -> None:
    dit = tiny_dit()
    cache = tiny_cache(dit, ChunkPlan(1, 1, 0, 2), rope_mode="absolute")
    cache.cursor = CacheCursor(cache.ring.max_positions)
    with pytest.raises(ValueError, match="absolute positions end at latent frame 1024"):
        cache.begin(1)


def test_absolute_equals_relative_before_the_first_eviction_only() -> None:
    dit, plan = tiny_dit(), ChunkPlan(1, 1, 1, 2)
    text = dit.embed_text(text_of(dit))
    caches = [tiny_cache(dit, plan, rope_mode=mode) for mode in ("relative", "absolute")]
    differences = []
    with torch.no_grad():
        for i in range(6):
            outs = []
            for cache in caches:
                cache.begin(1)
                outs.append(dit(tiny_latents(1, i), torch.zeros(1, 1), text, cache))
                cache.commit()
            differences.append(float((outs[0] - outs[1]).abs().max()))
    assert max(differences[:4]) == 0.0
    assert min(differences[4:]) > 1e-4


@pytest.mark.parametrize("batch", [1, 2])
def test_guidance_batch_over_a_shared_context_equals_single_forwards(batch: int) -> None:
    """Also where the stream itself is a batch: branches lie one after the other."""
    dit, plan = tiny_dit(), ChunkPlan(1, 1, 1, 2)
    cache, texts = tiny_cache(dit, plan, batch), [text_of(dit, batch, seed) for seed in (5, 6)]
    with torch.no_grad():
        for i in range(5):
            cache.begin(1)
            dit(tiny_latents(1, i, batch), torch.zeros(batch, 1), dit.embed_text(texts[0]), cache)
            cache.commit()
        cache.begin(1)
        x, level = tiny_latents(1, 9, batch), torch.full((2 * batch, 1), 500.0)
        single = torch.cat([dit(x, level[:batch], dit.embed_text(text), cache) for text in texts])
        both = dit(x.repeat(2, 1, 1, 1, 1), level, dit.embed_text(torch.cat(texts)), cache)
    assert (single - both).abs().max() < 1e-5


def test_mask_of_teacher_and_diffusion_forcing() -> None:
    plan = ChunkPlan(1, 1, 1, 2)
    forcing = sequence_mask([SequenceFrame(i) for i in range(6)], plan)
    assert forcing[5].tolist() == [True, False, False, True, True, True]
    both = sequence_mask(
        [SequenceFrame(i, target=False) for i in range(4)]
        + [SequenceFrame(i, context=False) for i in range(4)],
        plan,
    )
    assert both[7].tolist() == [True, True, True, False, False, False, False, True]
    assert both[3].tolist() == [True, True, True, True, False, False, False, False]


def test_bidirectional_context_sees_all() -> None:
    dit = tiny_dit()
    context = BidirectionalContext(dit.rope, 3, GRID, torch.device("cpu"))
    x, level = tiny_latents(3, 1), torch.full((1, 3), 300.0)
    changed = x.clone()
    changed[:, 2] += 1
    with torch.no_grad():
        a, b = (dit(y, level, dit.embed_text(text_of(dit)), context) for y in (x, changed))
    assert (a[:, 0] - b[:, 0]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 4, 1, 3), "first_chunk_frames"),
        ((3, 3, 3, 4), "window_frames must be a multiple"),
        ((3, 1, 3, 3), "sink_frames must be 0 or"),
    ],
)
def test_plan_refuses_cut_chunks(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChunkPlan(*sizes)
