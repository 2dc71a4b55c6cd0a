"""Chunks as programs: what they make is what the plain runner makes, over static buffers, captured or not,
and few of them serve all chunks.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from models.context import ChunkPlan
from models.kv_cache import CacheShape
from streamgen import Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine import choice
from streamgen.engine.noise import SeededNoise
from streamgen.engine.program import compiled, warm
from streamgen.engine.program.buffers import StaticBuffers
from streamgen.engine.program.capture import EagerCapture
from streamgen.engine.program.chunk import ChunkInputs, ProgramContext, ProgramKey, Sink, denoise_program
from streamgen.engine.program.compiled import TOLERANCE, ProgramRunner
from streamgen.engine.program.fused import FusedNetwork, ModulationTables
from streamgen.engine.program.leases import RingPool
from streamgen.engine.program.warm import warm_up
from streamgen.errors import NonFiniteError
from streamgen.motion.tracks import drag
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import GRID, assert_needs, tiny_dit, tiny_ring

UNGUIDED = {"rope": "absolute", "sampler": "euler", "text_guidance": 1.0, "motion_guidance": 0.0}
PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(3, 2, 2, 6), ChunkPlan(2, 2, 0, 4))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    torch.set_num_threads(1)
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"plan{i}"), plan, steps=2))
        for i, plan in enumerate(PLANS)
    ]


def as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """No compiler: the very function that a compiler is given."""
    return function


def program(pipeline: Pipeline, capture: bool = False) -> ProgramRunner:
    return ProgramRunner(pipeline.dit, None, as_it_is, EagerCapture() if capture else None)


def steered(session: Session, chunks: int) -> list[Tensor]:
    made = []
    for chunk in range(chunks):
        if chunk % 5 == 2:
            session.submit(StreamEvent(prompt=BLUE if chunk % 2 else RED))
        if chunk % 7 == 3:
            session.submit(StreamEvent(motion=drag((0.2, 0.3), (0.8, 0.7), 12)))
        if chunk % 11 == 6:
            session.submit(StreamEvent(cache="clear", settings={"context_noise": 0.1}))
        if chunk % 13 == 9:
            session.submit(StreamEvent(settings={"steps": 1 + chunk % 2, "text_guidance": 1.5}))
        made.append(next(session).latents)
    return made


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    for made, plain in zip(found, expected, strict=True):
        assert float((made - plain).abs().max() / plain.std()) < TOLERANCE


def run(pipeline: Pipeline, runner: Any, settings: dict[str, Any] | None = None) -> list[Tensor]:
    """Over evictions, recaches, scenes, drags, sliders; what the ring held before is not seen."""
    told = {"sampler": "renoise"} | (settings or {})
    session = pipeline.open(RED, settings=told, runner=runner, decode=False)
    if runner != "plain":
        session.state.latents.ring.values.fill_(torch.nan)
    try:
        return steered(session, 10)
    except NonFiniteError as error:
        raise AssertionError from error


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("plan", range(len(PLANS)))
@pytest.mark.parametrize(
    "settings", [{}, {"rope": "absolute", "sampler": "euler", "text_guidance": 1.0, "motion_guidance": 0.0}]
)
def test_programs_make_what_the_plain_runner_makes(
    plan: int, settings: dict[str, object], capture: bool, pipelines: list[Pipeline]
) -> None:
    expected = run(pipelines[plan], "plain", settings)
    agree(run(pipelines[plan], program(pipelines[plan], capture), settings), expected)


@pytest.mark.parametrize("capture", [False, True])
def test_programs_of_overlapping_patches(capture: bool, tmp_path: Path) -> None:
    pipeline = load_pipeline(write_checkpoint(tmp_path, PLANS[1], patch_stride=1))
    agree(run(pipeline, program(pipeline, capture)), run(pipeline, "plain"))


def test_a_capture_is_bit_for_bit_the_function_over_the_same_buffers(pipelines: list[Pipeline]) -> None:
    pipeline = pipelines[0]
    runner = program(pipeline, True)
    captured = run(pipeline, runner)
    assert 2 <= runner.captures <= 12
    assert all(torch.equal(*pair) for pair in zip(captured, run(pipeline, program(pipeline)), strict=True))


@pytest.mark.slow
def test_stale_buffers_and_wrong_fill_levels_are_found(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a captured program would have them that misses one of what a chunk brings."""
    pipeline = pipelines[0]
    expected, put = run(pipeline, "plain"), StaticBuffers.put

    def check() -> None:
        agree(run(pipeline, program(pipeline, True)), expected)

    def stale(name: str) -> Callable[..., Tensor]:
        seen: set[tuple[int, object]] = set()

        def once(self: StaticBuffers, place: str, x: Tensor) -> Tensor:
            known = (id(self), x.shape) in seen
            if place == name:
                seen.add((id(self), x.shape))
            return self.of(place, x.shape, x.dtype) if place == name and known else put(self, place, x)

        return once

    check()
    for name in ("latents", "fresh.0", "motion.0", "blocks.0", "cos", "sin", "places", "mask", "sink_cos"):
        with monkeypatch.context() as patched:
            patched.setattr(StaticBuffers, "put", stale(name))
            with pytest.raises(AssertionError):
                agree(run(pipeline, program(pipeline, True)), expected)

    def whole(view: Any) -> bool:
        return True

    def never(view: Any) -> bool:
        return False

    def kept(self: StaticBuffers, name: str, text: Any) -> Any:
        given = self.__dict__.setdefault("first", {}).setdefault(name, text)
        return words(self, name, given)

    words = StaticBuffers.put_text
    assert_needs(check, monkeypatch, compiled, "_is_full", whole)
    assert_needs(check, monkeypatch, compiled, "_turns", never)
    assert_needs(check, monkeypatch, StaticBuffers, "put_text", kept)
    assert_needs(check, monkeypatch, Sink, "turn", lambda self, keys: None)


@pytest.mark.slow
def test_two_streams_in_turns_over_one_program(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, written = pipelines[0], StaticBuffers.put_text

    def both(runners: tuple[Any, Any]) -> list[list[Tensor]]:
        pair = [
            pipeline.open(words, seed, runner=runner, decode=False)
            for seed, (words, runner) in enumerate(zip((RED, BLUE), runners, strict=True))
        ]
        made: list[list[Tensor]] = [[], []]
        for _ in range(7):
            for place in (0, 1):
                made[place].append(next(pair[place]).latents)
        return made

    alone = both((program(pipeline, True), program(pipeline, True)))

    def check() -> None:
        runner = program(pipeline, True)
        for found, expected in zip(both((runner, runner)), alone, strict=True):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))

    def held(self: StaticBuffers, name: str, text: Any) -> Any:
        # as if the words in the buffers were this stream's own once they have been copied
        self._held = dict.fromkeys(self._held, text)
        return written(self, name, text)

    assert_needs(check, monkeypatch, StaticBuffers, "put_text", held)


@pytest.mark.slow
def test_captures_are_capped_and_end_with_their_ring(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines[0]
    monkeypatch.setattr(compiled, "MOST_CAPTURES", 3)
    runner = program(pipeline, True)
    session = pipeline.open(RED, runner=runner, decode=False)
    steered(session, 20)
    assert [len(known) for known in runner._captured.values()] == [3]
    assert runner.captures > 3
    del session
    gc.collect()
    assert len(runner._captured) == 0


def test_what_is_not_finite_is_named(pipelines: list[Pipeline]) -> None:
    class Broken(SeededNoise):
        def renoise(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
            return super().renoise(chunk, step, shape) * (torch.nan if chunk == 5 else 1.0)

    for runner in ("plain", program(pipelines[0], True)):
        noise = Broken(0, torch.device("cpu"))
        told = {"sampler": "renoise"}
        session = pipelines[0].open(RED, runner=runner, settings=told, noise=noise, decode=False)
        for _ in range(5):
            next(session)
        with pytest.raises(NonFiniteError, match="chunk 5: step 2: velocity is not finite"):
            next(session)
        assert session.state.latents.chunk == 5


def test_a_failure_in_a_program_leaves_the_stream(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before and behind each program of a chunk with a recache, the sink turned or not."""
    pipeline, written = pipelines[0], ProgramRunner._run
    runner = program(pipeline, True)
    session = pipeline.open(RED, runner=runner, decode=False)
    for _ in range(6):
        next(session)
    start = session.snapshot()
    session.submit(StreamEvent(prompt=BLUE))
    expected = [next(session).latents for _ in range(3)]
    hits = 0
    for behind in (False, True):
        for place in range(10):
            other, count = Session.of(pipeline, start, runner), iter(range(1000))
            other.submit(StreamEvent(prompt=BLUE))

            def broken(
                self: Any, view: Any, key: Any, work: Any, count: Any = count, place: int = place
            ) -> None:
                hit = next(count) == place
                if not hit or behind:  # noqa: B023
                    written(self, view, key, work)
                if hit:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patched:
                patched.setattr(ProgramRunner, "_run", broken)
                try:
                    next(other)
                    break
                except KeyboardInterrupt:
                    hits += 1
            assert other.pending
            assert all(torch.equal(next(other).latents, latents) for latents in expected)
    # commits of the window behind the sink's own, and the chunk
    assert hits == 2 * (3 + 1)


def test_snapshots_cross_runners(pipelines: list[Pipeline]) -> None:
    pipeline = pipelines[1]
    runner = program(pipeline, True)
    session = pipeline.open(RED, runner=runner, decode=False)
    for _ in range(5):
        next(session)
    plain = Session.of(pipeline, session.snapshot(), pipeline.runner("plain"))
    again = Session.of(pipeline, session.snapshot(), runner)
    for _ in range(3):
        made = next(session).latents
        assert torch.equal(next(again).latents, made)
        agree([next(plain).latents], [made])


@pytest.mark.slow
def test_a_chunk_is_one_graph(pipelines: list[Pipeline]) -> None:
    """All of its steps, the sink and the flags: nothing in it asks the host."""
    torch._dynamo.reset()
    counter, pipeline = CompileCounter(), pipelines[0]
    whole = torch.compile(denoise_program, backend=counter, fullgraph=True, dynamic=False)
    runner = program(pipeline)
    session = pipeline.open(RED, runner=runner, decode=False)
    expected = [next(session).latents for _ in range(8)]
    seen: list[tuple[Any, ChunkInputs, ProgramKey]] = []

    def traced(network: Any, inputs: ChunkInputs, key: ProgramKey) -> None:
        seen.append((network, inputs, key))
        whole(network.network, inputs, key)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiled, "denoise_program", traced)
        other = pipeline.open(RED, runner=runner, decode=False)
        found = [next(other).latents for _ in range(8)]
    agree(found, expected)
    assert counter.frame_count == len({key for _, _, key in seen}) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("plan", range(len(PLANS)))
def test_every_path_is_warmed_at_load(
    plan: int, pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switches, drags, scenes, a kept sink, each number of steps: nothing is captured while a stream goes on
    that is lent the ring which was warmed.
    """
    pipeline = Pipeline(pipelines[plan].parts)
    pipeline.settings = pipeline.settings.updated({"sampler": "renoise"})
    sizes, told = pipeline._sizes(), list[tuple[int, int, str]]()

    def check() -> None:
        runner, pool = program(pipeline, True), RingPool(1)
        pipeline._rings = pool
        ring = pipeline.new_ring(pipeline.settings)
        warm_up(runner, pipeline.dit, sizes, ring, lambda *at: told.append(at))
        made = runner.captures
        assert 4 <= made < runner.most_captures
        del ring
        gc.collect()
        session = pipeline.open(RED, runner=runner, decode=False)
        for chunk in range(24):
            steps = 1 + chunk % pipeline.settings.steps
            events: dict[int, StreamEvent] = {
                6: StreamEvent(prompt=BLUE),
                8: StreamEvent(motion=drag((0.2, 0.3), (0.8, 0.7), 12)),
                10: StreamEvent(prompt=RED, sink="keep"),
                12: StreamEvent(cache="clear"),
                18: StreamEvent(prompt=BLUE),
            }
            session.submit(events.get(chunk, StreamEvent(settings={"steps": steps})))
            next(session)
        assert runner.captures == made

    written = warm._paths

    def without(kind: Any) -> Any:
        return lambda *told: [path for path in written(*told) if not kind(path)]

    # the third plan has no sink that is turned
    first = "commit" if plan == 2 else "turned"
    kinds = {"commit": lambda path: path.trial.sampling is None, "turned": lambda path: path.turned}
    assert_needs(check, monkeypatch, warm, "_paths", without(kinds[first]))
    assert told[-1][0] == told[-1][1] > 0
    if plan:
        return
    for kind in (
        lambda path: path.trial.sampling is None,
        lambda path: path.trial.motion,
        lambda path: path.trial.behind == PLANS[0].sink_frames,
        lambda path: path.trial.sampling is not None and len(path.trial.sampling.sigmas) == 2,
    ):
        assert_needs(check, monkeypatch, warm, "_paths", without(kind))


def test_what_is_made_at_load_is_kept(pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a model with more paths than a ring keeps by itself, as motion without strengths has."""
    monkeypatch.setattr(compiled, "MOST_CAPTURES", 3)
    pipeline = pipelines[0]
    sizes = replace(pipeline._sizes(), samplings=())

    def check() -> None:
        runner, ring = program(pipeline, True), pipeline.new_ring(pipeline.settings)
        warm_up(runner, pipeline.dit, sizes, ring)
        (kept,) = runner._captured.values()
        assert len(kept) == runner.captures == len(warm.warm_paths(pipeline.dit, sizes, True)) > 3

    assert_needs(check, monkeypatch, ProgramRunner, "make_room", lambda self, paths: None)


@pytest.mark.slow
def test_a_storage_is_lent_again() -> None:
    pool, dit = RingPool(1), tiny_dit()
    shape = CacheShape(dit.config.layers, dit.config.heads, dit.config.head_dim, GRID)
    about = (dit.rope, torch.device("cpu"), torch.float32)
    first = pool.ring(shape, PLANS[0], *about)
    second = pool.ring(shape, PLANS[0], *about)
    assert first.storage is not second.storage
    place, other = first.keys.data_ptr(), second.keys.data_ptr()
    assert not pool.has(shape, PLANS[0], torch.device("cpu"), torch.float32)
    del first
    gc.collect()
    assert pool.has(shape, PLANS[0], torch.device("cpu"), torch.float32)
    assert pool.ring(shape, PLANS[1], *about).keys.data_ptr() not in (place, other)
    gc.collect()
    third = pool.ring(shape, PLANS[1], *about)
    assert third.keys.shape[2] == PLANS[1].attention_frames * shape.tokens


@pytest.mark.slow
@pytest.mark.parametrize("plan", [0, 1])
def test_few_programs_serve_all_chunks(plan: int, pipelines: list[Pipeline]) -> None:
    """300 chunks with switches, scenes, drags, sliders and two numbers of steps; another stream needs none of
    its own.
    """
    torch._dynamo.reset()
    counter, pipeline = CompileCounter(), pipelines[plan]
    runner = ProgramRunner(
        pipeline.dit,
        None,
        lambda function: torch.compile(function, backend=counter, fullgraph=True, dynamic=False),
    )
    first = pipeline.open(RED, runner=runner, decode=False)
    steered(first, 300)
    assert 1 <= counter.frame_count <= 6
    count = counter.frame_count
    second = pipeline.open(BLUE, 1, runner=runner, decode=False)
    for _ in range(20):
        next(first)
        next(second)
    assert counter.frame_count == count


@pytest.mark.slow
def test_inductor_makes_the_plain_pass(pipelines: list[Pipeline]) -> None:
    torch._dynamo.reset()
    pipeline = pipelines[0]
    runner = pipeline.choose("compile").runner
    assert runner.name == "compile", pipeline.choose("compile").note
    found = steered(pipeline.open(RED, runner="compile", decode=False), 8)
    agree(found, steered(pipeline.open(RED, runner="plain", decode=False), 8))


def test_a_compiler_that_fails_gives_way(pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

    monkeypatch.setattr(choice.ProgramRunner, "_run", broken)
    pipeline = Pipeline(pipelines[0].parts)
    with pytest.warns(RuntimeWarning, match="runner compile: InvalidCxxCompiler: no working"):
        assert pipeline.open(RED, runner="compile").runner.name == "plain"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_network_rounds_as_the_plain_one(dtype: torch.dtype, pipelines: list[Pipeline]) -> None:
    """In eager mode differences are those of one wide product against three, no more; in half precision, too,
    where a rounding that is left out would show.
    """
    dit = tiny_dit(guidance=True).to(dtype)
    ring = tiny_ring(dit, PLANS[1])
    ring.view(ring.emptied(), 2)
    cursor = ring.emptied().moved(20)
    ring.end_rebuild(cursor)
    ring.keys.normal_(generator=torch.Generator().manual_seed(1))
    ring.values.normal_(generator=torch.Generator().manual_seed(2))
    view = ring.view(cursor, 3)
    x = torch.randn(1, 3, 4, GRID[0] * 2, GRID[1] * 2, generator=torch.Generator().manual_seed(3)).to(dtype)
    motion = torch.randn(1, 3, 3, GRID[0] * 2, GRID[1] * 2).to(dtype)
    with torch.no_grad():
        text = dit.embed_text(torch.randn(1, 5, 8).to(dtype))
        strengths = torch.tensor([2.0, 4.0]).expand(1, 3, 2)
        expected = dit(x, torch.full((1, 3), 500.0), text, view, motion, strengths)
        places = torch.cat([torch.arange(place.start, place.stop) for _, place in view.places])
        context = ProgramContext(ring.keys.unbind(), ring.values.unbind(), view.tables, places, None)
        table = ModulationTables(dit).at(500.0, (2.0, 4.0), 3)
        found = FusedNetwork(dit)(x, motion, table, (text.keys, text.values), context)
    error = (found.float() - expected.float()).pow(2).mean().sqrt() / expected.float().std()
    assert float(error) < (2e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.gpu
def test_graphs_make_what_the_plain_runner_makes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """On a CUDA device: captured, in turns by two streams, over switches, drags and scenes."""
    from streamgen.engine.program.compiled import GraphRunner

    folder = write_checkpoint(tmp_path_factory.mktemp("plan"), PLANS[0], steps=2)
    pipeline = load_pipeline(folder, device="cuda", dtype=torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False
    expected = run(pipeline, "plain")
    for compiler in (as_it_is, None):
        runner = GraphRunner(pipeline.dit, None, compiler)
        first = run(pipeline, runner)
        agree(first, expected)
        assert runner.captures > 0
        # replayed, and not captured once more
        assert all(torch.equal(*pair) for pair in zip(run(pipeline, runner), first, strict=True))
