"""Streams that listen on every runner: what the plain one makes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.context import ChunkPlan
from streamgen import Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.batch import TOLERANCE, BatchedRunner
from streamgen.engine.onnx.runner import OnnxRunner
from streamgen.engine.program.capture import EagerCapture
from streamgen.engine.program.compiled import ProgramRunner
from streamgen.engine.runner import BatchPlace, DenoiseTask
from tests.live_input import clip, listening
from tests.streams import BLUE
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(3, 2, 2, 6))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    torch.set_num_threads(1)
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"plan{i}"), plan, steps=2))
        for i, plan in enumerate(PLANS)
    ]


def runner_of(name: str, pipeline: Pipeline) -> Any:
    """A runner; programs are run as they read, which is all that a compiler is given."""
    as_it_is = lambda function: function  # noqa: E731
    return {
        "onnx": lambda: OnnxRunner(pipeline.dit, pipeline.codec),
        "compile": lambda: ProgramRunner(pipeline.dit, pipeline.codec, as_it_is),
        "graph": lambda: ProgramRunner(pipeline.dit, pipeline.codec, as_it_is, EagerCapture()),
        "batch": lambda: BatchedRunner.lone(pipeline.dit, pipeline.codec, BatchPlace(3, 1)),
    }[name]()


def steered(session: Session) -> list[Tensor]:
    """A full window, other strengths, a mask, a recache, words of the input."""
    changes = {
        5: StreamEvent(settings={"strength": 0.6}),
        7: StreamEvent(BLUE, mask=torch.eye(4)),
        8: StreamEvent(settings={"input_prompt": "a red circle"}, mask=torch.ones(1, 1)),
        9: StreamEvent(settings={"strength": 1.0, "input_prompt": ""}),
    }
    made = []
    for chunk in range(11):
        if chunk in changes:
            session.submit(changes[chunk])
        made.append(next(session).latents)
    return made


def agrees(name: str, sampler: str, pipeline: Pipeline) -> None:
    settings = {"sampler": sampler}
    expected = steered(listening(pipeline, clip(200), settings=settings, runner="plain"))
    made = steered(listening(pipeline, clip(200), settings=settings, runner=runner_of(name, pipeline)))
    for found, plain in zip(made, expected, strict=True):
        assert float((found - plain).abs().max() / plain.std()) < TOLERANCE


EVERYDAY = (("onnx", 0), ("compile", 1))
OTHERS = (("onnx", 1), ("compile", 0), ("graph", 0), ("graph", 1), ("batch", 0), ("batch", 1))


@pytest.mark.parametrize(
    ("name", "plan"), [*EVERYDAY, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_a_stream_that_listens_is_the_same_on_every_runner(
    name: str, plan: int, pipelines: list[Pipeline]
) -> None:
    agrees(name, ("renoise", "euler")[plan], pipelines[plan])


def test_the_comparison_needs_the_input_in_the_draws(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that begins at noise is found."""
    denoise = ProgramRunner.denoise

    def deaf(self: ProgramRunner, task: DenoiseTask) -> Tensor:
        return denoise(self, replace(task, source=None))

    assert_needs(
        lambda: agrees("compile", "euler", pipelines[0]), monkeypatch, ProgramRunner, "denoise", deaf
    )
