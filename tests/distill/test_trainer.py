"""The trainer: exact resume, parallel processes, signals, checkpoints, configs, schedules, digests."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.__main__ import main
from distill.checkpoint import CheckpointWriter, latest_checkpoint, list_checkpoints, load_checkpoint
from distill.config import (
    CheckpointConfig,
    ConfigError,
    OptimConfig,
    PreviewConfig,
    RunConfig,
    build,
)
from distill.ema import Ema
from distill.optim import build_optimizers, learning_rate_factor, split_parameters
from distill.trainer import Tick, TrainingError, make_accelerator
from streamgen.checkpoints.digest import tensor_digest
from streamgen.errors import CheckpointError
from streamgen.structured import to_plain
from tests.processes import forget_processes
from tests.toy_stage import ToyNet, ToyStage, assert_same, final_state, toy_config, toy_trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("distill.tracking.write_plots", lambda *_: [])
    yield
    forget_processes()


def kill(number: int) -> Any:
    """Sends the signal once: a second one would act as usual and end the tests."""
    left = [number]
    return lambda _x: os.kill(os.getpid(), left.pop()) if left else None


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation": 2, "prefetch": True}, {"precision": "bf16"}]
)
def test_resume_is_exact(tmp_path: Path, options: dict[str, Any]) -> None:
    toy_trainer(toy_config(tmp_path / "whole", **options), ToyStage()).run()
    stopped = toy_trainer(
        toy_config(tmp_path / "parts", **options), ToyStage(at={2: kill(signal.SIGTERM)})
    ).run()
    assert (stopped.exit_code, stopped.reason) == (143, "stopped by SIGTERM")
    assert stopped.step < 6
    torch.manual_seed(999)
    resumed = toy_trainer(toy_config(tmp_path / "parts", **options), ToyStage()).run()
    assert (resumed.exit_code, resumed.step) == (0, 6)
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert {"muon", "adamw"} == set(whole["optimizers"]["net"])
    assert_same(whole, parts)


def test_resume_would_differ_without_the_optimizer_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_trainer(toy_config(tmp_path / "whole"), ToyStage()).run()
    toy_trainer(toy_config(tmp_path / "parts"), ToyStage(at={2: kill(signal.SIGTERM)})).run()
    monkeypatch.setattr("distill.trained.TrainedModule._load_optimizers", lambda *_: None)
    toy_trainer(toy_config(tmp_path / "parts"), ToyStage()).run()
    with pytest.raises(AssertionError):
        assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_interrupt_saves_and_does_not_export(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    outcome = toy_trainer(toy_config(tmp_path), ToyStage(at={1: kill(signal.SIGINT)})).run()
    assert (outcome.exit_code, outcome.step) == (130, 2)
    assert latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-000000002"
    assert not (tmp_path / "export").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_exports_the_average_and_trains_no_further(tmp_path: Path) -> None:
    trainer = toy_trainer(toy_config(tmp_path), ToyStage())
    trainer.run()
    exported = torch.load(tmp_path / "export" / "net.pt", weights_only=True)
    average = final_state(tmp_path)["ema"]["net"]
    assert all(torch.equal(exported[name], average[name]) for name in exported)
    again = toy_trainer(toy_config(tmp_path), ToyStage(at={6: kill(signal.SIGTERM)})).run()
    assert (again.step, again.reason) == (6, "done")


LAUNCHERS = {
    "accelerate": (
        ["accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"],
        "--num_processes",
    ),
    "torchrun": (["torch.distributed.run", "--standalone"], "--nproc_per_node"),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_equal_one_on_the_same_global_batch(tmp_path: Path, launcher: str) -> None:
    toy_trainer(toy_config(tmp_path / "one"), ToyStage(noise=0.0)).run("none")
    module, count = LAUNCHERS[launcher]
    command = [
        sys.executable,
        "-m",
        *module,
        count,
        "2",
        str(ROOT / "tests" / "toy_stage.py"),
        str(tmp_path / "two"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if launcher == "accelerate":
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / "world.txt").read_text() == "2"
    one, two = (
        final_state(tmp_path / "one")["modules"]["net"],
        final_state(tmp_path / "two")["modules"]["net"],
    )
    # Muon works in bf16, so a gradient rounded otherwise shows in the third digit of an update.
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-3, msg=name)
    assert not torch.equal(one["hidden.weight"], ToyNet(0.0).hidden.weight)


def test_processes_that_do_not_join_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    alone = types.SimpleNamespace(num_processes=1)
    monkeypatch.setattr("distill.parallel.Accelerator", lambda **_: alone)
    with pytest.raises(TrainingError, match="launched as one of 2 processes, but joined 1"):
        make_accelerator(toy_config(tmp_path))


def test_nonfinite_gradient_stops_before_the_update(tmp_path: Path) -> None:
    config = toy_config(tmp_path, checkpoint=CheckpointConfig(every_steps=2, every_minutes=None))
    stage = ToyStage(at={3: lambda x: x * float("nan")})
    with pytest.raises(TrainingError, match=r"step 3: loss nan.*step-000000002"):
        toy_trainer(config, stage).run()
    assert all(bool(torch.isfinite(p).all()) for p in stage.net.parameters())
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-000000002"]


def test_checkpoints_by_steps_keep_the_last(tmp_path: Path) -> None:
    config = toy_config(tmp_path, checkpoint=CheckpointConfig(every_steps=1, every_minutes=None, keep=2))
    toy_trainer(config, ToyStage()).run()
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-000000005", "step-000000006"]


def test_latest_passes_over_an_interrupted_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, files = CheckpointWriter(tmp_path, keep=5), {"state.pt": {"weights": torch.arange(4.0)}}
    good = writer.save(1, files, {})
    torn = writer.save(3, files, {})
    (tmp_path / ".partial-step-000000002").mkdir()
    (torn / "state.pt").write_bytes((torn / "state.pt").read_bytes()[:-10])
    (tmp_path / "step-000000004").mkdir()
    assert latest_checkpoint(tmp_path) == good

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distill.checkpoint._flush", full)
    with pytest.raises(CheckpointError, match="No space left"):
        CheckpointWriter(tmp_path, keep=1).save(5, files, {})
    assert latest_checkpoint(tmp_path) == good
    with pytest.raises(CheckpointError, match="incomplete"):
        load_checkpoint(torn)


def test_a_checkpoint_of_another_net_is_refused(tmp_path: Path) -> None:
    toy_trainer(toy_config(tmp_path), ToyStage()).run()
    stage = ToyStage()
    stage.net.last = torch.nn.Linear(12, 4)
    with pytest.raises(CheckpointError, match=r"last.weight is \(3, 12\), expected \(4, 12\)"):
        toy_trainer(toy_config(tmp_path), stage).run()


def test_time_schedule_follows_the_clock_and_continues(tmp_path: Path) -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock, factors = Clock(), []

    def tick(seconds: float) -> Any:
        def advance(_x: Any) -> None:
            clock.now += seconds

        return advance

    config = toy_config(
        tmp_path,
        max_steps=100,
        max_minutes=2.0,
        schedule="time",
        optim=OptimConfig(warmup_steps=0, decay_fraction=0.5),
    )
    outcome = toy_trainer(config, ToyStage(at={0: tick(60), 1: kill(signal.SIGTERM)}), clock=clock).run()
    assert outcome.minutes == pytest.approx(1.0)
    clock.now = 5000.0
    trainer = toy_trainer(config, ToyStage(at={step: tick(15) for step in range(2, 100)}), clock=clock)
    outcome = trainer.run()
    assert outcome.minutes == pytest.approx(2.0)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    factors = [row["lr"] for row in rows if row["kind"] == "train"]
    assert factors == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("clock", ["wall", "processor"])
def test_minutes_of_the_processor_leave_out_waiting(tmp_path: Path, clock: str) -> None:
    began = time.monotonic()
    stage = ToyStage(at={1: lambda _x: time.sleep(0.2)})
    spent = 60 * toy_trainer(toy_config(tmp_path, clock=clock), stage).run().minutes
    waited = time.monotonic() - began - spent
    assert waited > 0.19 if clock == "processor" else spent > 0.19


def test_previews_at_the_start_and_every_steps_use_the_average(tmp_path: Path) -> None:
    stage = ToyStage()
    config = toy_config(tmp_path, preview=PreviewConfig(every_steps=3, every_minutes=None, at_end=True))
    trainer = toy_trainer(config, stage)
    trainer.run()
    assert [step for step, _ in stage.evaluated] == [0, 3, 6]
    assert torch.equal(stage.evaluated[-1][1], final_state(tmp_path)["ema"]["net"]["hidden.weight"])
    assert not torch.equal(stage.evaluated[-1][1], stage.net.hidden.weight)


def test_previews_can_keep_the_weights_they_judged(tmp_path: Path) -> None:
    preview = PreviewConfig(every_steps=3, every_minutes=None, at_start=False, weights=True)
    stage = ToyStage()
    toy_trainer(toy_config(tmp_path, preview=preview), stage).run()
    for step, judged in stage.evaluated:
        kept = torch.load(tmp_path / "previews" / f"step-{step:09d}" / "export" / "net.pt", weights_only=True)
        assert torch.equal(kept["hidden.weight"], judged)
    assert [step for step, _ in stage.evaluated] == [3, 6]


def test_average_formula() -> None:
    net = ToyNet(0.0)
    ema, expected = Ema(net, decay=0.5), net.last.bias.detach().clone()
    for update in range(12):
        net.last.bias.data.add_(1.0)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * net.last.bias.detach()
        ema.update()
    torch.testing.assert_close(ema.state_dict()["last.bias"], expected)


@pytest.mark.parametrize(
    ("decay", "step", "progress", "expected"),
    [
        ("linear", 0, 0.0, 0.1),
        ("linear", 9, 0.1, 1.0),
        ("linear", 50, 0.75, 1.0),
        ("linear", 50, 0.875, 0.5 + 0.5 * 0.2),
        ("linear", 99, 1.0, 0.2),
        ("cosine", 50, 0.875, 0.5 + 0.5 * 0.2),
        ("cosine", 50, 0.8125, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))),
        ("none", 99, 1.0, 1.0),
    ],
)
def test_schedule(decay: str, step: int, progress: float, expected: float) -> None:
    config = build(
        OptimConfig, {"decay": decay, "warmup_steps": 10, "decay_fraction": 0.25, "final_fraction": 0.2}
    )
    assert learning_rate_factor(config, step, progress) == pytest.approx(expected)


def test_muon_takes_hidden_matrices_only() -> None:
    net = ToyNet(0.0)
    optimizers = build_optimizers(OptimConfig(), split_parameters(net, ("first", "last")))
    assert [p is net.hidden.weight for p in optimizers["muon"].param_groups[0]["params"]] == [True]
    assert sum(len(group["params"]) for group in optimizers["adamw"].param_groups) == 5
    assert set(build_optimizers(OptimConfig(matrices="adamw"), split_parameters(net))) == {"adamw"}


def test_batches_depend_on_the_place_alone() -> None:
    place = Tick(step=4, micro=0, rank=1, world=2, seed=7, progress=0.1)
    assert place.generator_seed("a") == Tick(4, 0, 1, 2, 7, 0.9).generator_seed("a")
    other = [
        Tick(5, 0, 1, 2, 7, 0.1),
        Tick(4, 1, 1, 2, 7, 0.1),
        Tick(4, 0, 0, 2, 7, 0.1),
        Tick(4, 0, 1, 2, 8, 0.1),
    ]
    assert len({tick.generator_seed("a") for tick in [place, *other]} | {place.generator_seed("b")}) == 6
    assert place.generator_seed("a", shared=True) == other[2].generator_seed("a", shared=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, r"unknown config key 'sede' \(did you mean 'seed'\?\)"),
        (
            {"optim": {"warmup_step": 1}},
            r"unknown config key 'optim.warmup_step' \(did you mean 'optim.warmup_steps'\?\)",
        ),
        ({"max_steps": "many"}, "config key max_steps: expected int, found 'many'"),
        ({"schedule": "tme"}, "config key schedule: expected one of steps, time, found 'tme'"),
        ({"schedule": "time"}, "schedule: time needs max_minutes, found null"),
        ({"ema_decay": 1.5}, r"ema_decay: expected within \[0, 1\), found 1.5"),
        ({"optim": {"betas": [0.9]}}, "config key optim.betas: expected a list of 2"),
        ({"optim": 3}, "config key optim: expected a section of keys, found 3"),
    ],
)
def test_config_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(RunConfig, {"stage": "toy", "run_dir": "r", "max_steps": 1, "seed": 0, **changes})


def test_config_survives_plain_form(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    assert build(RunConfig, to_plain(config)) == config
    with pytest.raises(ConfigError, match="config key seed is missing"):
        build(RunConfig, {"stage": "toy", "run_dir": "r", "max_steps": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "error: config missing.yaml: no such file"),
        (["CONFIG", "data.frame=9"], "error: unknown config key 'data.frame' (did you mean 'data.frames'?)"),
        (["CONFIG", "stage=tokeniser"], "error: unknown stage 'tokeniser' (did you mean 'tokenizer'?)"),
        (["CONFIG", "seed"], "error: override 'seed': expected key=value"),
        (
            ["CONFIG", "model.window=0"],
            "error: config section model: window: expected an integer of at least 1",
        ),
    ],
)
def test_bad_command_lines_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = "configs/distill/tiny/tokenizer.yaml"
    assert main([config if item == "CONFIG" else item for item in arguments]) == 2
    captured = capsys.readouterr().err.strip()
    assert message in captured
    assert "\n" not in captured


def test_digest_is_stable_and_sees_everything() -> None:
    state = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.tensor(3)}
    assert tensor_digest(state) == tensor_digest({"a": state["a"], "b": state["b"].T.contiguous().T})
    assert tensor_digest(state) == "f2dda7fa00fa915e850086552cccdd43bfb6c3112aefe35d36ec27d961da43af"
    others = [
        {**state, "a": torch.tensor(4)},
        {**state, "a": torch.tensor(3, dtype=torch.int32)},
        {**state, "b": state["b"].reshape(3, 2)},
        {"b": state["b"], "c": state["a"]},
    ]
    assert len({tensor_digest(item) for item in [state, *others]}) == 5
