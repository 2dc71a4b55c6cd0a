"""Steps that follow need, in a stream: first chunks, changes and deadlines; what was taken stands in the log,
so that replays, snapshots and forks are exact.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import streamgen.stream.session
from streamgen import InputError, Pipeline, Session, StreamEvent, Timeline, load_pipeline
from streamgen.engine.budget import StepBudget
from streamgen.engine.runner import PlainRunner
from tests.command_line import call
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

NEED = {"steps": 1, "first_steps": 4, "change_steps": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=4)
    config = (path / "config.yaml").read_text().replace("sampler: euler", "sampler: renoise")
    (path / "config.yaml").write_text(config)
    return path


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load_pipeline(checkpoint)


def test_steps_follow_need(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[float] = []
    asked = PlainRunner.velocity

    def counted(self: PlainRunner, *arguments: Any) -> Any:
        inner = asked(self, *arguments)
        return lambda x, sigma: passes.append(sigma) or inner(x, sigma)  # type: ignore[func-returns-value]

    monkeypatch.setattr(PlainRunner, "velocity", counted)
    session = pipeline.open(RED, settings=NEED)
    trained = pipeline.settings.sampling().sigmas
    found = []
    for chunk in range(6):
        if chunk == 2:
            session.submit(StreamEvent(prompt=BLUE))
        if chunk == 3:
            session.submit(StreamEvent(settings={"text_guidance": 2.0}))
        if chunk == 4:
            session.submit(StreamEvent(cache="clear"))
        passes.clear()
        found.append(next(session).steps)
        assert len(passes) == found[-1]
        assert set(passes) <= set(trained)
    assert found == [4, 1, 3, 1, 4, 1]


class SlowMachine:
    """Stands in for the clock of denoising: a step takes so many milliseconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step_ms = 10.0
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        asked = PlainRunner.velocity

        def velocity(runner: PlainRunner, *arguments: Any) -> Any:
            inner = asked(runner, *arguments)

            def step(x: torch.Tensor, sigma: float) -> torch.Tensor:
                self.now += self.step_ms / 1000
                return inner(x, sigma)

            return step

        monkeypatch.setattr(PlainRunner, "velocity", velocity)


def driven(session: Session, machine: SlowMachine, chunks: int = 14) -> tuple[list[int], list[torch.Tensor]]:
    """Steps and latents of a stream on a machine that is busy for a while."""
    steps, latents = [], []
    for chunk in range(chunks):
        machine.step_ms = 40.0 if 3 <= chunk < 8 else 5.0
        if chunk == 5:
            session.submit(StreamEvent(prompt=BLUE))
        made = next(session)
        steps.append(made.steps)
        latents.append(made.latents)
    return steps, latents


def test_what_a_deadline_came_to_is_replayed(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SlowMachine(monkeypatch)
    session = pipeline.open(RED, deadline_ms=50)
    steps, latents = driven(session, machine)
    assert steps[:3] == [4, 4, 4]
    assert min(steps[4:8]) == 1
    assert steps[-1] == 4
    timeline = Timeline.from_json(json.loads(json.dumps(session.timeline.to_json())))

    def check() -> None:
        # another machine, and no deadline
        again = pipeline.replay(timeline)
        found = [next(again) for _ in steps]
        assert [chunk.steps for chunk in found] == steps
        assert all(torch.equal(chunk.latents, x) for chunk, x in zip(found, latents, strict=True))

    check()
    # a log that does not tell is found
    untold = streamgen.stream.session.paced

    def silent(model: Any, state: Any, decision: Any, budget: StepBudget) -> Any:
        from dataclasses import replace

        return replace(untold(model, state, decision, budget), event=decision.event)

    with monkeypatch.context() as patched:
        patched.setattr(streamgen.stream.session, "paced", silent)
        other = pipeline.open(RED, deadline_ms=50)
        steps, latents = driven(other, machine)
        timeline = other.timeline
        with pytest.raises(AssertionError):
            check()


def test_snapshots_forks_and_resumes_go_on_alike(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SlowMachine(monkeypatch)
    session = pipeline.open(RED, deadline_ms=50)
    driven(session, machine, 6)
    session.save(tmp_path / "state")
    fork, resumed = session.fork(), pipeline.resume(tmp_path / "state")
    paced = pipeline.resume(tmp_path / "state", deadline_ms=50)
    machine.step_ms = 5.0
    ahead, branch = ([next(each) for _ in range(8)] for each in (session, fork))
    assert [chunk.steps for chunk in ahead] == [chunk.steps for chunk in branch]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(ahead, branch, strict=True))
    assert ahead[-1].steps == 4
    # without a deadline it goes on with what there was
    assert {next(resumed).steps for _ in range(4)} == {session_steps(tmp_path, pipeline)}
    assert [next(paced).steps for _ in range(12)][-1] == 4


def session_steps(folder: Path, pipeline: Pipeline) -> int:
    return pipeline.resume(folder / "state").controls.settings.budget_steps


def test_a_failed_chunk_leaves_the_budget(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SlowMachine(monkeypatch)
    session, other = (pipeline.open(RED, deadline_ms=50) for _ in range(2))
    driven(session, machine, 4)
    driven(other, machine, 4)
    events = len(session.state.log)
    with monkeypatch.context() as patched:
        patched.setattr(PlainRunner, "decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(session)
    assert len(session.state.log) == events
    machine.step_ms = 5.0
    for _ in range(6):
        found, expected = next(session), next(other)
        assert torch.equal(found.latents, expected.latents)
        assert found.steps == expected.steps


@pytest.mark.parametrize("name", ["first_steps", "change_steps", "budget_steps"])
def test_steps_that_cannot_be(name: str, pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match=f"{name} must be in 0..1000, found -1"):
        pipeline.open(RED, settings={name: -1})
    with pytest.raises(InputError, match=f"setting {name}: expected int, found 1.5"):
        pipeline.open(RED, settings={name: 1.5})


def test_the_command_takes_a_deadline(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", checkpoint, "-q"]
    clip, again, state = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "state"
    done = call(capsys, "render", RED, "-o", clip, "--seconds", 2, "--deadline", 0.01, "--save-state", state,
                *common)  # fmt: skip
    assert done.code == 0, done
    assert done.stderr.count("deadline: 0.01 ms cannot be met") == 1
    record = json.loads(clip.with_suffix(".json").read_text())
    assert record["job"]["deadline_ms"] == 0.01
    assert set(record["steps"]) == {"1", "4"}
    assert record["settings"]["budget_steps"] == 1
    assert any("cannot be met" in note for note in record["notes"])
    replayed = call(capsys, "render", clip.with_suffix(".json"), "-o", again, *common)
    assert replayed.code == 0, replayed
    assert json.loads(again.with_suffix(".json").read_text())["replay"]["equal"] is True
    assert_needs_positive(capsys, tmp_path, common)
    jobs = tmp_path / "jobs.txt"
    jobs.write_text(f"{RED}\n")
    assert "--deadline: not here" in call(capsys, "render", jobs, "-o", tmp_path / "out", "--deadline", 5,
                                          *common).error()  # fmt: skip


def assert_needs_positive(capsys: pytest.CaptureFixture[str], folder: Path, common: list[Any]) -> None:
    for value in ("0", "-3", "nan", "inf"):
        refused = call(capsys, "render", RED, "-o", folder / "c.mp4", f"--deadline={value}", *common)
        assert "deadline: expected a positive number of milliseconds, found" in refused.error()
        assert refused.code == 2
    assert not (folder / "c.mp4").exists()


def test_budget_is_needed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SlowMachine(monkeypatch)

    def check() -> None:
        steps, _ = driven(pipeline.open(RED, deadline_ms=50), machine, 8)
        assert steps[-1] < 4

    assert_needs(check, monkeypatch, StepBudget, "choose", lambda self, now, most, rebuilds=False: most)
