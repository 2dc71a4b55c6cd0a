"""What a run survives: resumes with running streams, kills, full disks, other configs, NaN losses."""

import itertools
import json
import os
import signal
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import checkpoint, parallel, trainer
from distill.checkpoint import (
    CheckpointWriter,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_stage_state,
)
from distill.config import CheckpointConfig, PreviewConfig, RunConfig, differing_keys
from distill.nonfinite import to_tensors
from distill.trainer import Tick, TrainingError
from streamgen.errors import CheckpointError
from tests.processes import forget_processes
from tests.tiny_models import assert_needs
from tests.toy_distillation import DistillationStage, distillation_config, train
from tests.toy_stage import ToyStage, assert_same, final_state, toy_config, toy_trainer

EVERY_STEP = CheckpointConfig(every_steps=1, every_minutes=None, keep=10)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    forget_processes()


def until(config_dir: Path, steps: int, **changes: Any) -> None:
    """Train, and leave checkpoints as a kill after `steps` would."""
    train(distillation_config(config_dir, checkpoint=EVERY_STEP, **changes), pull=0.5)
    for path in list_checkpoints(config_dir / "checkpoints")[steps:]:
        path.rename(path.with_name(f"gone-{path.name}"))


@pytest.mark.slow
def test_running_streams_go_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter("abcdefgh")

    def check() -> None:
        run = tmp_path / next(names)
        until(run, 4)
        last = run / "checkpoints" / "gone-step-000000006"
        train(distillation_config(run), pull=0.5)
        assert_same(load_checkpoint(last)[0], final_state(run))
        assert torch.equal(
            load_stage_state(last, 0, 1)["stream"],
            load_stage_state(run / "checkpoints" / "step-000000006", 0, 1)["stream"],
        )

    assert_needs(check, monkeypatch, DistillationStage, "load_state", lambda *_: None)


@pytest.mark.slow
def test_frozen_networks_are_used_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = DistillationStage().teacher.state_dict()
    names = iter("ab")

    def check() -> None:
        run = tmp_path / next(names)
        stage = train(distillation_config(run, max_steps=2))
        assert not any(p.requires_grad for p in stage.teacher.parameters())
        assert not stage.teacher.training
        assert_same(dict(before), dict(stage.teacher.state_dict()))
        assert set(final_state(run)["modules"]) == {"student", "critic"}

    assert_needs(check, monkeypatch, parallel.Parallel, "freeze", lambda *_: None)


def test_state_of_other_processes_is_refused(tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {"state.pt": {}, "stage-rank-00000.pt": {}, "stage-rank-00001.pt": {}}
    path = CheckpointWriter(tmp_path, keep=1).save(1, files, {})
    with pytest.raises(CheckpointError, match="state of 2 processes, this run has 1; start it with 2"):
        load_stage_state(path, 0, 1)
    path = CheckpointWriter(tmp_path, keep=1).save(2, {"state.pt": {}}, {})
    with pytest.raises(CheckpointError, match="no running state"):
        load_stage_state(path, 0, 1)


def test_a_kill_while_saving_loses_only_the_steps_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` arrives while the third checkpoint is being written, at each of its two files."""
    toy_trainer(toy_config(tmp_path / "whole"), ToyStage()).run()
    names = iter("abcd")

    def check() -> None:
        for write in (5, 6):
            run = tmp_path / next(names)
            assert killed_at(write, toy_config(run, checkpoint=EVERY_STEP)) == -signal.SIGKILL
            found = [path.name for path in list_checkpoints(run / "checkpoints")]
            assert found == ["step-000000001", "step-000000002"]
            toy_trainer(toy_config(run), ToyStage()).run()
            assert_same(final_state(tmp_path / "whole"), final_state(run))
            assert not list((run / "checkpoints").glob(".partial-*"))

    check()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "is_complete", lambda path: path.is_dir())
        assert_needs_again(check, patched)


def killed_at(write: int, config: RunConfig) -> int:
    """Train in a process that is killed when it flushes its file number `write`; returns its exit code."""
    child = os.fork()
    if child == 0:
        flush, counter = checkpoint._flush, itertools.count(1)

        def deadly(descriptor: int) -> None:
            if next(counter) == write:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(descriptor)

        checkpoint._flush = deadly
        # threads of the tests' process are not here, and work given to them would wait for ever
        torch.set_num_threads(1)
        # whatever happens, the child must not go on with the tests
        try:
            toy_trainer(config, ToyStage()).run()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_needs_again(check: Callable[[], None], patched: pytest.MonkeyPatch) -> None:
    """The check fails when checkpoints are written under their final names."""

    def in_place(self: CheckpointWriter, step: int, files: Any, meta: Any, shares: Any = None) -> Path:
        final = self._root / f"step-{step:09d}"
        final.mkdir(parents=True)
        checkpoint._write_files(final, files)
        (final / "meta.json").write_text(json.dumps({**meta, "step": step}))
        return final

    patched.setattr(CheckpointWriter, "save", in_place)
    with pytest.raises(AssertionError):
        check()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, calls = checkpoint._flush, iter(range(1, 100))

    def full(descriptor: int) -> None:
        if next(calls) > 2:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(CheckpointError, match=r"000002 could not be written: .*No space left") as error:
        toy_trainer(toy_config(tmp_path, checkpoint=EVERY_STEP), ToyStage()).run()
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]
    assert load_checkpoint(tmp_path / "checkpoints" / "step-000000001")[1]["step"] == 1


def test_what_another_process_could_not_write_fails_everywhere(tmp_path: Path) -> None:
    said = iter([[], ["rank 1: No space left on device"]])
    writer = CheckpointWriter(tmp_path, keep=1, agree=lambda _: next(said))
    with pytest.raises(CheckpointError, match="rank 1: No space left"):
        writer.save(1, {"state.pt": {}}, {})
    assert not list(tmp_path.iterdir())


def test_another_config_is_told_by_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_trainer(toy_config(tmp_path, max_steps=2), ToyStage()).run()
    stage = ToyStage()
    stage.net.last = torch.nn.Linear(12, 4)
    changed = toy_config(tmp_path, ema_decay=0.5, preview=PreviewConfig(every_steps=7))
    with pytest.raises(CheckpointError) as error:
        toy_trainer(changed, stage).run()
    message = str(error.value)
    assert "last.weight is (3, 12), expected (4, 12)" in message
    assert "Config keys that differ: max_steps was 2, now 6; ema_decay was 0.998, now 0.5" in message
    assert "preview.every_steps was None, now 7" in message
    assert "\n" not in message
    toy_trainer(toy_config(tmp_path, max_steps=3), ToyStage()).run()
    assert "with other settings: max_steps was 2, now 3" in capsys.readouterr().err
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 2}}) == {
        "a.c": (2, None),
        "a.d": (None, 2),
    }


def test_newer_checkpoints_do_not_hide_a_run_from_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run from step 2 again had its checkpoints removed as the oldest, and `latest` was the old run's."""
    names = iter("ab")

    def check() -> None:
        run = tmp_path / next(names)
        toy_trainer(toy_config(run, checkpoint=EVERY_STEP), ToyStage()).run()
        keep_two = CheckpointConfig(every_steps=1, every_minutes=None, keep=2)
        again = toy_config(run, max_steps=4, checkpoint=keep_two)
        toy_trainer(again, ToyStage()).run(str(run / "checkpoints" / "step-000000002"))
        assert latest_checkpoint(run / "checkpoints") == run / "checkpoints" / "step-000000004"
        toy_trainer(again, ToyStage()).run("none")
        found = [path.name for path in list_checkpoints(run / "checkpoints")]
        assert found == ["step-000000003", "step-000000004"]
        assert (run / "checkpoints" / "replaced-1-step-000000006").is_dir()

    assert_needs(check, monkeypatch, trainer, "set_aside_after", lambda *_: [])


def test_nan_keeps_the_batch_and_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter("ab")

    def check() -> None:
        run = tmp_path / next(names)
        config = toy_config(run, checkpoint=CheckpointConfig(every_steps=2, every_minutes=None))
        stage = ToyStage(at={3: lambda x: x * float("nan")})
        with pytest.raises(TrainingError, match=r"step 3: loss nan.*nonfinite/step-0+3.*step-0+2"):
            toy_trainer(config, stage).run()
        place = run / "nonfinite" / "step-000000003"
        batch = torch.load(place / "batch-rank-00000-micro-00.pt", weights_only=True)
        assert batch.shape == (8, 6)
        assert bool(batch.isnan().all())
        assert "hidden.weight" in (place / "report-rank-00000.json").read_text()
        kept, meta = load_checkpoint(place / "step-000000003")
        assert meta["step"] == 3
        assert all(bool(value.isfinite().all()) for value in kept["modules"]["net"].values())
        # the same update with a good batch: nothing had been changed by the bad one
        toy_trainer(toy_config(run), ToyStage()).run(str(place / "step-000000003"))
        toy_trainer(toy_config(run / "good"), ToyStage()).run()
        assert_same(final_state(run), final_state(run / "good"))

    check()
    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_stop_for_nonfinite", lambda *_: None)
        with pytest.raises(pytest.fail.Exception):
            check()


def test_any_batch_becomes_plain_tensors() -> None:
    place = Tick(1, 0, 0, 1, 7, 0.5)
    batch = {"a": (torch.ones(2), None, "text"), "b": place, 3: types.SimpleNamespace(x=1)}
    plain = to_tensors(batch)
    assert torch.equal(plain["a"][0], torch.ones(2))
    assert plain["a"][1:] == [None, "text"]
    assert plain["b"]["seed"] == 7
    assert plain["3"] == "namespace(x=1)"
