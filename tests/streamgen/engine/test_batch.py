"""Streams at once: each is what it is alone, whoever is beside it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.context import ChunkPlan
from streamgen import Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.batch import TOLERANCE, BatchContext, BatchedPasses, BatchedRunner, Gathering
from streamgen.engine.noise import SeededNoise
from streamgen.engine.runner import BatchPlace
from streamgen.errors import InputError, Interrupted, NonFiniteError
from streamgen.motion.tracks import drag
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

#: Plans, and how far patches lie apart where they overlap.
KINDS = ((ChunkPlan(1, 1, 1, 3), None), (ChunkPlan(3, 2, 2, 6), None), (ChunkPlan(1, 1, 1, 3), 1))
CHUNKS = 8
WORDS = (RED, BLUE, "a star drifts right")
# what happens to each stream, by chunk
EVENTS: tuple[dict[int, StreamEvent], ...] = (
    {2: StreamEvent(motion=drag((0.2, 0.3), (0.8, 0.7), 40)), 4: StreamEvent(prompt=BLUE)},
    {3: StreamEvent(prompt=RED, cache="clear", settings={"context_noise": 0.1, "steps": 1})},
    {5: StreamEvent(prompt=BLUE, cache="keep", settings={"text_guidance": 1.0, "motion_guidance": 0.0})},
)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    torch.set_num_threads(1)
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"kind{i}"), plan, 2, patch_stride=stride))
        for i, (plan, stride) in enumerate(KINDS)
    ]


def opened(pipeline: Pipeline, number: int, runner: Any, **more: Any) -> Session:
    return pipeline.open(WORDS[number], number, runner=runner, decode=False, **more)


def steered(session: Session, number: int, chunks: int = CHUNKS) -> list[Tensor]:
    made = []
    for chunk in range(chunks):
        if chunk in EVENTS[number]:
            session.submit(EVENTS[number][chunk])
        made.append(next(session).latents)
    return made


def at_once(gathering: Gathering, work: Sequence[Callable[[BatchedRunner], Any]]) -> list[Any]:
    """What streams in threads of their own come to, or the error; the n-th one at place n."""

    def run(place: int, runner: BatchedRunner) -> Any:
        assert runner.batch == BatchPlace(gathering.size, place)
        try:
            return work[place](runner)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(work)) as pool:
        places = [gathering.member() for _ in work]
        runners = [place.__enter__() for place in places]
        futures = [pool.submit(run, *pair) for pair in enumerate(runners)]
        for future, place in zip(futures, places, strict=True):
            future.add_done_callback(lambda _, place=place: place.__exit__(None, None, None))
        return [future.result(60) for future in futures]


def all_three(pipeline: Pipeline) -> list[list[Tensor]]:
    work = [
        lambda runner, number=number: steered(opened(pipeline, number, runner), number) for number in range(3)
    ]
    return at_once(pipeline.gathering(3), work)


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_streams_at_once_are_what_each_is_alone(
    kind: int, pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other words, motion, sliders, steps, noise levels, fill levels and scenes beside each other."""
    pipeline = pipelines[kind]
    plain = [steered(opened(pipeline, number, "plain"), number) for number in range(3)]

    def check() -> None:
        for found, expected in zip(all_three(pipeline), plain, strict=True):
            assert not isinstance(found, Exception), found
            for made, alone in zip(found, expected, strict=True):
                assert float((made - alone).abs().max() / alone.std()) < TOLERANCE

    def first(self: BatchContext, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = [view.attend(layer, q[:1], k[:1], v[:1]) for view in self.views]
        return torch.cat([seen[stream] for stream in self.rows])

    if kind:
        check()
        return
    assert_needs(check, monkeypatch, BatchContext, "attend", first)
    unguided = lambda self, picked: None  # noqa: E731
    assert_needs(check, monkeypatch, BatchedPasses, "_motion", unguided)


def test_a_stream_is_bit_for_bit_what_it_is_at_its_place_whoever_is_beside_it(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines[0]
    full, written = all_three(pipeline), BatchContext.__init__

    def alone() -> None:
        for number in range(3):
            runner = BatchedRunner.lone(pipeline.dit, None, BatchPlace(3, number))
            made = steered(opened(pipeline, number, runner), number)
            assert all(torch.equal(*pair) for pair in zip(full[number], made, strict=True))

    def anywhere(self: BatchContext, views: Any, places: Any, rows: Sequence[int]) -> None:
        written(self, views, [rows.index(stream) for stream in range(len(views))], rows)

    assert_needs(alone, monkeypatch, BatchContext, "__init__", anywhere)

    class Broken(SeededNoise):
        """Draws of a stream that comes to nothing."""

        def initial(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
            return super().initial(chunk, shape) * (torch.nan if chunk == 3 else 1.0)

    def not_finite(runner: BatchedRunner) -> list[Tensor]:
        noise = Broken(1, torch.device("cpu"))
        return steered(opened(pipeline, 1, runner, noise=noise), 1)

    def out_of_memory(runner: BatchedRunner) -> list[Tensor]:
        session = opened(pipeline, 2, runner)
        made = steered(session, 2, 3)
        session.state.latents.ring.keys = torch.zeros(0)
        return made + steered(session, 2, 3)

    def check() -> None:
        beside = [lambda runner: steered(opened(pipeline, 0, runner), 0), not_finite, out_of_memory]
        kept, nan, memory = at_once(pipeline.gathering(3), beside)
        assert isinstance(nan, NonFiniteError)
        assert isinstance(memory, (RuntimeError, IndexError))
        assert not isinstance(kept, Exception)
        assert all(torch.equal(*pair) for pair in zip(kept, full[0], strict=True))

    def together(self: BatchedPasses, place: int, request: Any) -> Exception:
        return RuntimeError("what one does costs all")

    assert_needs(check, monkeypatch, BatchedPasses, "_alone", together)


def test_a_batch_stands_in_snapshots_and_is_taken_again(pipelines: list[Pipeline], tmp_path: Path) -> None:
    pipeline = pipelines[0]

    def saved(runner: BatchedRunner) -> list[Tensor]:
        session = opened(pipeline, 1, runner)
        steered(session, 1, 4)
        session.save(tmp_path / "state")
        return steered(session, 1, 3)

    _, expected = at_once(
        pipeline.gathering(2), [lambda runner: steered(opened(pipeline, 0, runner), 0), saved]
    )
    session = pipeline.resume(tmp_path / "state")
    assert session.snapshot().meta["batch"] == {"size": 2, "place": 1}
    assert all(torch.equal(*pair) for pair in zip(steered(session, 1, 3), expected, strict=True))
    # another runner may be asked for, and then there is no batch
    assert pipeline.resume(tmp_path / "state", runner="plain").runner.batch is None


def test_who_waits_gives_up_when_all_is_over(pipelines: list[Pipeline]) -> None:
    pipeline, gathering = pipelines[0], pipelines[0].gathering(2)

    def closing(runner: BatchedRunner) -> None:
        session = opened(pipeline, 0, runner)
        next(session)
        gathering.close()

    def going_on(runner: BatchedRunner) -> list[Tensor]:
        return steered(opened(pipeline, 1, runner), 1, 1000)

    _, other = at_once(gathering, [closing, going_on])
    assert isinstance(other, Interrupted)


def test_places_are_given_and_taken_back(pipelines: list[Pipeline]) -> None:
    gathering = pipelines[0].gathering(2)
    with gathering.member() as first:
        with gathering.member() as second:
            assert second.batch == BatchPlace(2, 1)
            with pytest.raises(ValueError, match="all 2 places"):
                gathering.member().__enter__()
        with gathering.member() as third:
            assert (first.batch, third.batch) == (BatchPlace(2, 0), BatchPlace(2, 1))


@pytest.mark.parametrize(("size", "place"), [(0, 0), (65, 0), (2, 2), (2, -1), (True, 0), ("2", 0)])
def test_batches_that_cannot_be(size: Any, place: Any) -> None:
    with pytest.raises(InputError, match="batch: expected a size of 1 to 64"):
        BatchPlace(size, place)


def test_other_runners_have_no_batch(pipelines: list[Pipeline]) -> None:
    with pytest.raises(InputError, match="batch: streams at once run on runner plain, found onnx"):
        Pipeline(pipelines[0].parts, runner="onnx").gathering(2)
