"""Which runner a stream gets: by name, by a measurement that is kept, by its record; and what is said where
it cannot be had.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.engine import choice
from streamgen.engine.choice import RUNNER_VARIABLE, fastest, work_seconds
from streamgen.engine.onnx import runner as onnx_runner
from streamgen.engine.runner import PlainRunner, Runner
from streamgen.engine.sizes import Sizes
from tests.command_line import call
from tests.streams import BLUE, RED, take
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1)


@pytest.fixture
def pipeline(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return load_pipeline(checkpoint)


def sizes_of(pipeline: Pipeline) -> Sizes:
    return pipeline._sizes()


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else found(name, *more)
    )


def broken(*arguments: Any, **more: Any) -> None:
    raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize("quicker", ["plain", "onnx"])
def test_auto_takes_the_fastest_and_remembers_it(quicker: str, pipeline: Pipeline, tmp_path: Path) -> None:
    asked: list[str] = []

    def measure(runner: Runner) -> float:
        asked.append(runner.name)
        return 0.5 if runner.name == quicker else 1.0 + len(asked)

    arguments = (pipeline.dit, pipeline.codec, sizes_of(pipeline), tmp_path, measure)
    assert fastest(*arguments) == quicker
    # in turns
    assert asked[:4] == ["plain", "onnx", "plain", "onnx"]
    count = len(asked)
    assert fastest(*arguments) == quicker
    assert len(asked) == count
    kept = json.loads((tmp_path / "runners.json").read_text())
    assert [min(row, key=row.get) for row in kept.values()] == [quicker]
    # another number of threads is another measurement
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        fastest(*arguments)
    finally:
        torch.set_num_threads(threads)
    assert len(asked) > count
    (tmp_path / "runners.json").write_text("no JSON")
    assert fastest(*arguments) == quicker


@pytest.mark.parametrize(
    ("plain", "onnx", "name", "threads"),
    [(0.2, 0.1, "auto", 1), (0.2, 0.1, "onnx", 1), (0.2, 0.1, "plain", 2), (0.2, 0.15, "auto", 2)],
)
def test_one_thread_where_that_is_enough(  # chunks of 4 frames at 16 a second play for .25 s
    plain: float, onnx: float, name: str, threads: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    asked: list[int] = []

    def measure(runner: Runner, *parts: Any) -> float:
        asked.append(torch.get_num_threads())
        return plain if runner.name == "plain" else onnx

    monkeypatch.setattr(choice, "work_seconds", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipeline = load_pipeline(checkpoint, runner=name)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        pipeline.settle_threads()
        assert (torch.get_num_threads(), asked) == (2, [])
        monkeypatch.delenv("OMP_NUM_THREADS")
        pipeline.settle_threads()
        assert (torch.get_num_threads(), set(asked)) == (threads, {1})
    finally:
        torch.set_num_threads(before)


def test_the_measurement_runs_on_both(pipeline: Pipeline) -> None:
    for name in ("plain", "onnx"):
        runner = pipeline.choose(name).runner
        assert 0 < work_seconds(runner, pipeline.dit, pipeline.codec, sizes_of(pipeline)) < 60


def test_auto_goes_without_what_is_not_there(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNNER_VARIABLE)
    with monkeypatch.context() as patched:
        without_package(patched)
        assert pipeline.open(RED).runner.name == "plain"
    sizes = sizes_of(pipeline)
    monkeypatch.setattr(choice, "_MOST_PARAMETERS", 1)
    assert fastest(pipeline.dit, pipeline.codec, sizes) == "plain"
    monkeypatch.setattr(choice, "_MOST_PARAMETERS", 10**9)
    monkeypatch.setattr(onnx_runner, "Program", broken)
    assert fastest(pipeline.dit, pipeline.codec, sizes) == "plain"


@pytest.mark.parametrize("name", ["onnx", "auto"])
def test_what_fails_falls_back_with_one_line(
    name: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where nobody asked for it by name: what should be the fastest and does not work is said."""
    monkeypatch.setattr(onnx_runner, "Program", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="runner onnx: no kernel for this; going on with the plain one"):
        session = pipeline.open(RED, runner=name)
    assert session.runner.name == "plain"
    assert torch.equal(take(session, 2), take(pipeline.open(RED, runner="plain"), 2))


@pytest.mark.filterwarnings("error")
def test_the_command_says_it_once(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once more as a warning of Python's, and nothing of how to debug a compiler."""

    def fails(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("no kernel\nfor this\n\nSet VERBOSE=1 for the stack")

    monkeypatch.setattr(onnx_runner, "Program", fails)
    given = ["--model", checkpoint, "--runner", "onnx", "--seconds", 1]
    made = call(capsys, "render", RED, "-o", tmp_path / "a.mp4", *given)
    assert made.code == 0, made
    notes = [line for line in made.stderr.splitlines() if "runner onnx" in line]
    assert notes == ["note: runner onnx: no kernel for this; going on with the plain one"]


def test_weights_without_room_are_told(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "free_bytes", lambda device: 1000)
    with pytest.raises(InputError, match=r"runner onnx: needs [\d.]+ GiB for its own form of the weights"):
        pipeline.open(RED, runner="onnx")


def test_records_name_the_runner_and_renders_take_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--model", checkpoint, "-q"]
    clip, again, state = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "state"
    made = call(capsys, "render", RED, "-o", clip, "--seconds", 1, "--runner", "onnx",
                "--save-state", state, *common)  # fmt: skip
    assert made.code == 0, made
    record = json.loads(clip.with_suffix(".json").read_text())
    assert record["runner"] == "onnx"
    done = call(capsys, "render", clip.with_suffix(".json"), "-o", again, *common)
    assert done.code == 0, done
    found = json.loads(again.with_suffix(".json").read_text())
    assert (found["runner"], found["replay"]["equal"], found["threads"]) == ("onnx", True, record["threads"])
    assert call(capsys, "render", "-o", again, "--continue-from", state, "--seconds", 1, *common).code == 0
    assert json.loads(again.with_suffix(".json").read_text())["runner"] == "onnx"
    plain = call(capsys, "render", clip.with_suffix(".json"), "-o", again, "--runner", "plain", *common)
    assert plain.code == 0, plain
    assert json.loads(again.with_suffix(".json").read_text())["runner"] == "plain"
    # where it cannot be had, a record's runner is told in one line and the plain one goes on
    without_package(monkeypatch)
    told = call(capsys, "render", clip.with_suffix(".json"), "-o", again, *common)
    assert told.code == 0, told
    assert "needs the package onnxruntime: pip install onnxruntime; going on" in told.stderr
    assert json.loads(again.with_suffix(".json").read_text())["runner"] == "plain"


def test_a_stream_replays_on_its_runner(pipeline: Pipeline) -> None:
    session = pipeline.open(RED, runner="onnx")
    first = take(session, 2)
    session.submit(StreamEvent(prompt=BLUE))
    first = torch.cat([first, take(session, 3)])
    assert torch.equal(take(pipeline.replay(session.timeline, runner="onnx"), 5), first)
    fork = session.fork()
    assert fork.runner is session.runner
    assert torch.equal(take(fork, 2), take(session, 2))


@pytest.mark.parametrize("command", ["render", "bench"])
def test_bad_runners_are_one_line(
    command: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = [RED, "-o", tmp_path / "a.mp4"] if command == "render" else []
    unknown = call(capsys, command, *given, "--model", checkpoint, "--runner", "onx")
    assert "unknown runner 'onx' (did you mean 'onnx'?)" in unknown.error()
    without_package(monkeypatch)
    missing = call(capsys, command, *given, "--model", checkpoint, "--runner", "onnx")
    assert "runner onnx: needs the package onnxruntime: pip install onnxruntime" in missing.error()
    assert not list(tmp_path.iterdir())


def test_other_dtypes_are_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = load_pipeline(checkpoint, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="runner onnx: computes in float32, the model is in bfloat16"):
        half.open(RED, runner="onnx")
    assert isinstance(half.open(RED, runner="auto").runner, PlainRunner)
    monkeypatch.setenv(RUNNER_VARIABLE, "fast")
    with pytest.raises(InputError, match="unknown runner 'fast'"):
        half.open(RED)
