"""The compiled runner: its passes are those of the plain one, and few programs serve all chunks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from models.context import ChunkPlan
from models.kv_cache import CacheView
from streamgen import Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine import choice
from streamgen.engine.compiled import TOLERANCE, CompiledRunner, ProgramContext
from streamgen.errors import NonFiniteError
from streamgen.motion.tracks import drag
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(3, 2, 2, 6), ChunkPlan(2, 2, 0, 4))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"plan{i}"), plan, steps=2))
        for i, plan in enumerate(PLANS)
    ]


def as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """No compiler: the very function that a compiler is given."""
    return function


def steered(session: Session, chunks: int) -> list[Tensor]:
    made = []
    for chunk in range(chunks):
        if chunk % 5 == 2:
            session.submit(StreamEvent(prompt=BLUE if chunk % 2 else RED))
        if chunk % 7 == 3:
            session.submit(StreamEvent(motion=drag((0.2, 0.3), (0.8, 0.7), 12)))
        if chunk % 11 == 6:
            session.submit(StreamEvent(cache="clear", settings={"context_noise": 0.1}))
        made.append(next(session).latents)
    return made


@pytest.mark.parametrize("plan", range(len(PLANS)))
@pytest.mark.parametrize("settings", [{}, {"rope": "absolute", "text_guidance": 1.0, "motion_guidance": 0.0}])
def test_the_program_is_the_plain_pass(
    plan: int, settings: dict[str, object], pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over evictions, recaches, scenes and drags; what the ring held before is not seen."""
    pipeline = pipelines[plan]
    expected = steered(pipeline.open(RED, settings=settings, runner="plain"), 10)

    def check() -> None:
        runner = CompiledRunner(pipeline.dit, pipeline.codec, as_it_is)
        session = pipeline.open(RED, settings=settings, runner=runner)
        session.state.latents.ring.values.fill_(torch.nan)
        try:
            made = steered(session, 10)
        except NonFiniteError as error:
            raise AssertionError from error
        for found, plain in zip(made, expected, strict=True):
            assert float((found - plain).abs().max() / plain.std()) < TOLERANCE

    if settings:
        check()
        return
    written = ProgramContext.of.__func__  # type: ignore[attr-defined]

    def unmasked(view: CacheView) -> ProgramContext:
        context = written(ProgramContext, view)
        return ProgramContext(context.keys, context.values, context.tables, context.places, None)

    def shifted(view: CacheView) -> ProgramContext:
        context = written(ProgramContext, view)
        places = (context.places + 1) % context.keys.shape[2]
        return ProgramContext(context.keys, context.values, context.tables, places, context.mask)

    assert_needs(check, monkeypatch, ProgramContext, "of", staticmethod(unmasked))
    assert_needs(check, monkeypatch, ProgramContext, "of", staticmethod(shifted))


@pytest.mark.slow
@pytest.mark.parametrize("plan", [0, 1])
def test_few_programs_serve_all_chunks(
    plan: int, pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 chunks with switches, scenes, drags and two numbers of steps; another stream needs none of its
    own.
    """
    torch._dynamo.reset()
    counter, pipeline = CompileCounter(), pipelines[plan]
    runner = CompiledRunner(
        pipeline.dit,
        None,
        lambda function: torch.compile(function, backend=counter, fullgraph=True, dynamic=False),
    )
    first = pipeline.open(RED, runner=runner, decode=False)
    steered(first, 150)
    first.submit(StreamEvent(settings={"steps": 1}))
    steered(first, 150)
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
    found = steered(pipeline.open(RED, runner="compile"), 8)
    for made, plain in zip(found, steered(pipeline.open(RED, runner="plain"), 8), strict=True):
        assert float((made - plain).abs().max() / plain.std()) < TOLERANCE


def test_a_compiler_that_fails_gives_way(pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

    monkeypatch.setattr(choice.CompiledRunner, "_run", broken)
    pipeline = Pipeline(pipelines[0].parts)
    with pytest.warns(RuntimeWarning, match="runner compile: InvalidCxxCompiler: no working"):
        assert pipeline.open(RED, runner="compile").runner.name == "plain"
