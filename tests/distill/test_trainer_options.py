"""What a run can be told: adapters, recomputed activations, trackers, plots, dry runs; and the time left."""

import json
import sys
import types
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill import activation, lora, tracking
from distill.__main__ import main
from distill.activation import checkpoint_blocks
from distill.batches import moved
from distill.checkpoint import latest_checkpoint, load_checkpoint
from distill.config import ConfigError, LoraConfig, OptimConfig, PreviewConfig, RunConfig
from distill.dry_run import dry_run, estimate, in_bytes
from distill.plots import read_curves, write_plots
from distill.progress import TimeLeft, describe
from distill.tracking import Tracker
from distill.trainer import Trainer, make_accelerator
from distill.words.told import ToldBatch
from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import ChunkPlan
from streamgen.errors import CheckpointError
from tests.processes import forget_processes, run_processes
from tests.tiny_models import GRID, assert_needs, tiny_cache, tiny_dit, tiny_latents
from tests.toy_distillation import DistillationStage, Net, distillation_config, train
from tests.toy_stage import ToyStage, assert_same, final_state, toy_config, toy_trainer

ADAPTERS = LoraConfig(rank=2, alpha=4.0, targets=("linear",), modules=("student",))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    forget_processes()


@pytest.mark.slow
def test_adapters_train_resume_and_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter("ab")

    def check() -> None:
        exports_merged(tmp_path / next(names))

    assert_needs(check, monkeypatch, lora, "merged", lambda _: nullcontext())
    monkeypatch.setattr("tests.toy_distillation.Net", lambda seed: Net(seed + 10))
    with pytest.raises(CheckpointError, match="adapters belong to other weights"):
        train(distillation_config(tmp_path / "a" / "parts", lora=ADAPTERS))


def exports_merged(tmp_path: Path) -> None:
    """Trains adapters in one go and in two, and looks at what is kept and exported."""
    whole = distillation_config(tmp_path / "whole", lora=ADAPTERS)
    stage = train(whole)
    state = final_state(tmp_path / "whole")
    adapters = {name for name in state["modules"]["student"] if "lora_" in name}
    assert set(state["modules"]["student"]) == adapters | {"calls"}
    assert len(adapters) == 4
    assert set(state["modules"]["critic"]) == set(Net(2).state_dict())
    assert all(torch.equal(Net(1).first.weight, net.first.weight) for net in [stage.student])

    train(distillation_config(tmp_path / "parts", lora=ADAPTERS, max_steps=3))
    train(distillation_config(tmp_path / "parts", lora=ADAPTERS))
    assert_same(state, final_state(tmp_path / "parts"))

    exported = torch.load(tmp_path / "whole" / "export" / "student.pt")
    plain, average = Net(1), state["ema"]["student"]
    assert set(exported) == set(plain.state_dict())
    for i in range(2):
        place = f"blocks.{i}.linear"
        up, down = average[f"{place}.lora_B.default.weight"], average[f"{place}.lora_A.default.weight"]
        expected = plain.get_parameter(f"{place}.weight") + 2.0 * up @ down
        torch.testing.assert_close(exported[f"{place}.weight"], expected)
        assert not torch.equal(exported[f"{place}.weight"], plain.get_parameter(f"{place}.weight"))
    assert torch.equal(exported["first.weight"], plain.first.weight)


@pytest.mark.slow
def test_sharded_adapters_equal_whole_ones(tmp_path: Path) -> None:
    train(distillation_config(tmp_path / "one", lora=ADAPTERS))
    config = distillation_config(tmp_path / "two", lora=ADAPTERS, parallel="fsdp2")
    assert run_processes(2, train, config) == ["", ""]
    torch.testing.assert_close(
        final_state(tmp_path / "two"), final_state(tmp_path / "one"), rtol=1e-4, atol=1e-5
    )
    exported = [torch.load(tmp_path / run / "export" / "student.pt") for run in ("one", "two")]
    torch.testing.assert_close(exported[1], exported[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (LoraConfig(targets=("nothing",), modules=("student",)), "lora.targets do not fit module student"),
        (LoraConfig(modules=("teacher",)), "expected some of student, critic, found teacher"),
    ],
)
def test_adapters_that_do_not_fit(tmp_path: Path, adapters: LoraConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(distillation_config(tmp_path, lora=adapters))


def test_merging_adapters_is_undone_bit_for_bit() -> None:
    net = Net(1)
    lora.adapt("net", net, ADAPTERS, seed=5)
    nn.init.normal_(net.blocks[0].linear.lora_B["default"].weight)
    before, x = net.state_dict(), torch.ones(2, 6)
    expected = net(x)
    with lora.merged(net):
        assert list(net.state_dict()) == list(Net(1).state_dict())
        torch.testing.assert_close(net(x), expected)
    assert_same(dict(before), dict(net.state_dict()))
    again = Net(1)
    lora.adapt("net", again, ADAPTERS, seed=5)
    name = "blocks.0.linear.lora_A.default.weight"
    assert torch.equal(net.get_parameter(name), again.get_parameter(name))


@pytest.mark.slow
def test_recomputing_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = activation.checkpoint
    monkeypatch.setattr(
        activation, "checkpoint", lambda *given, **named: calls.append(1) or original(*given, **named)
    )
    train(distillation_config(tmp_path / "kept"))
    assert not calls
    train(distillation_config(tmp_path / "again", activation_checkpointing=True))
    # one student and two critic updates, twice, four blocks each
    assert len(calls) == 6 * 4
    assert_same(final_state(tmp_path / "kept"), final_state(tmp_path / "again"))


def test_recomputing_over_a_stream_that_moved_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a chunk is taken after later chunks were committed: its blocks must read the cache of
    then.
    """

    def gradients(recompute: bool) -> dict[str, torch.Tensor]:
        dit = tiny_dit(motion_channels=0)
        if recompute:
            checkpoint_blocks(dit)
        cache = tiny_cache(dit, ChunkPlan(1, 1, 1, 2))
        latents = tiny_latents(6)
        text = dit.embed_text(torch.ones(1, 3, 8) * 0.3)
        total = torch.zeros(())
        for i in range(6):
            cache.begin(1)
            view = cache.view
            chunk, level = latents[:, i : i + 1], torch.full((1, 1), 500.0)
            if i in (2, 3):
                total = total + dit(chunk, level, text, view).square().mean()
            with torch.no_grad():
                dit(chunk, level * 0, text, view)
            cache.commit()
        total.backward()
        return {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}

    def check() -> None:
        try:
            found = gradients(recompute=True)
        except RuntimeError as error:
            raise AssertionError(str(error)) from error
        torch.testing.assert_close(found, gradients(recompute=False), rtol=1e-5, atol=1e-7)

    assert GRID
    assert_needs(check, monkeypatch, activation, "held_view", lambda view, _: view)


class FakeTracker(types.ModuleType):
    """Takes the calls that wandb and trackio would."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any, Any]] = []

    def init(self, **named: Any) -> "FakeTracker":
        self.calls.append(("init", named, None))
        return self

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.calls.append(("log", values, step))

    def finish(self) -> None:
        self.calls.append(("finish", None, None))

    def Image(self, path: str) -> str:
        return f"image {Path(path).name}"


class PictureStage(ToyStage):
    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        (out_dir / "sheet.png").write_bytes(b"")
        return super().evaluate(step, out_dir)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_numbers_and_pictures(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTracker(name)
    monkeypatch.setitem(sys.modules, name, fake)
    toy_trainer(toy_config(tmp_path, trackers=(name,), max_steps=2), PictureStage()).run()
    toy_trainer(toy_config(tmp_path, trackers=(name,), max_steps=3), PictureStage()).run()
    kinds = [kind for kind, _, _ in fake.calls]
    assert kinds == ["init", "log", "log", "log", "log", "finish", "init", "log", "finish"]
    first, second = (values for kind, values, _ in fake.calls if kind == "init")
    assert first["project"] == "streamgen"
    assert first["config"]["max_steps"] == 2
    assert first["name"] == second["name"]
    assert second["resume"] == "allow"
    logs = [(step, values) for kind, values, step in fake.calls if kind == "log"]
    assert [step for step, _ in logs] == [0, 0, 1, 2, 3]
    assert logs[1][1] == {"sheet": "image sheet.png"}
    assert "train/loss" in logs[2][1]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"trackers: {name} is not installed: pip install {name}"):
        toy_trainer(toy_config(tmp_path, trackers=(name,)), ToyStage()).run()


@pytest.mark.slow
def test_plots_of_every_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "write_plots", write_plots)
    preview = PreviewConfig(every_minutes=None)
    toy_trainer(toy_config(tmp_path, max_steps=2, preview=preview), ToyStage()).run()
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert names == {"loss", "grad_norm", "lr", "input", "norm", "seconds_per_step"}
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_curves_leave_out_what_a_resume_undid(tmp_path: Path) -> None:
    rows = [
        {"kind": kind, "step": step, "minutes": 1.0, "loss": loss}
        for kind, step, loss in [
            ("preview", 0, 9.0),
            ("train", 1, 5.0),
            ("train", 2, 4.0),
            ("preview", 2, 4.5),
            ("train", 3, 3.0),
            ("train", 2, 4.1),
            ("train", 3, 3.1),
        ]
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"kind": "tra', encoding="utf-8")
    assert read_curves(path) == {
        ("preview", "loss"): ([0], [9.0]),
        ("train", "loss"): ([1, 2, 3], [5.0, 4.1, 3.1]),
    }


@pytest.mark.parametrize(
    ("budget", "place", "left"),
    [
        ((100, None), (20, 10.0), 40.0),
        ((100, 30.0), (20, 10.0), 20.0),
        ((100, 200.0), (20, 10.0), 40.0),
        ((100, 200.0), (10, 5.0), 195.0),
        ((100, None), (10, 5.0), None),
    ],
)
def test_time_left(budget: tuple[int, float | None], place: tuple[int, float], left: float | None) -> None:
    estimate_left = TimeLeft(*budget, step=10, minutes=5.0)
    assert estimate_left.minutes(*place) == left


def test_time_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    minutes = (None, 0.5, 12.2, 65.0, 1500.0, 4560.0)
    assert [describe(m) for m in minutes] == ["?", "30 s", "12 min", "1 h 05 min", "1 d 1 h", "3 d 4 h"]
    toy_trainer(toy_config(tmp_path, max_steps=2), ToyStage()).run()
    assert "left 0 s loss" in capsys.readouterr().err


def test_the_bar_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    config = toy_config(tmp_path, max_steps=1000, max_minutes=40.0, log_every=100)
    with Tracker(config, tmp_path, True, step=10, minutes=1.0) as tracker:
        tracker.record(30, {"loss": torch.tensor(1.0)}, 5.0, 5.0 / 40.0)
    # 20 steps in 4 minutes; the time, not the steps, is what ends this run
    assert "30/240" in (shown := capsys.readouterr().err)
    assert "left 35 min" in shown


@pytest.mark.slow
def test_a_dry_run_says_what_a_run_costs(tmp_path: Path) -> None:
    config = distillation_config(tmp_path, max_minutes=2.0, max_steps=10**9)
    stage = DistillationStage()
    cost = dry_run(Trainer(config, stage, make_accelerator(config)))
    size = sum(p.numel() for p in Net(1).parameters())
    for module in cost.modules:
        assert (module.count, module.trained) == (size, size)
        assert (module.parameters, module.gradients, module.average) == (4 * size,) * 3
        # two tensors and a step count for each of ten parameters
        assert module.optimizer == 8 * size + 10 * 4
    assert cost.frozen == {"teacher": (size, 4 * size)}
    assert cost.shares["critic"] == pytest.approx(2 / 3, abs=0.01)
    assert cost.seconds is not None
    lines = cost.lines(config)
    assert f"parameters student {size} ({size} trained)" in lines
    assert any(line.startswith("steps in 2 min ") for line in lines)
    assert {line.split()[1] for line in lines if line.startswith("memory")} == {
        "parameters",
        "gradients",
        "optimizers",
        "average",
        "frozen",
        "activations",
        "total",
    }
    assert not list(tmp_path.iterdir())


class WanStage:
    """The published shape of Wan2.1-T2V-1.3B three times."""

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        def network() -> nn.Module:
            return CausalDiT(CausalDiTConfig(dim=1536, layers=30, heads=12, ffn_dim=8960, text_dim=4096))

        return {"student": network(), "critic": network()}, {"teacher": network()}


def test_a_dry_run_of_wans_shape_allocates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig("toy", str(tmp_path), 10, 0, parallel="fsdp2", optim=OptimConfig(matrices="adamw"))
    cost = estimate(config, WanStage, processes=8)
    assert [module.count for module in cost.modules] == [1_418_996_800] * 2
    assert cost.modules[0].parameters == 4 * 1_418_996_800 // 8
    assert cost.modules[0].optimizer == 8 * 1_418_996_800 // 8
    assert in_bytes(cost.modules[0].parameters) == "677 MiB"

    # copies of eight shares on 64 processes: what each holds is the same, and copies agree beside
    hybrid = replace(config, parallel="hsdp", shards=8, sequence=2)
    wide = estimate(hybrid, WanStage, processes=64)
    assert wide.modules[0].parameters == cost.modules[0].parameters
    assert wide.plan[:2] == (
        "plan 64 processes: 8 copies of all networks, each in 8 shares",
        "plan 32 batches an update, each in 2 slabs",
    )
    own = 4 * 1_418_996_800
    sent = 3 * own * 7 // 8 + 2 * (own // 8)
    assert f"sent for an update of student {in_bytes(sent)} per process" in wide.plan
    with pytest.raises(ConfigError, match="shards: expected a divisor of the 12 processes, found 8"):
        estimate(hybrid, WanStage, processes=12)

    monkeypatch.setattr("distill.stages.load_run", lambda *_: config)
    monkeypatch.setattr("distill.stages.stage_class", lambda _: WanStage)
    assert main(["wan.yaml", "--dry-run", "--meta", "--processes", "8"]) == 0
    printed = capsys.readouterr().out
    assert "parameters teacher 1,418,996,800 (frozen)" in printed
    assert "memory activations not measured" in printed
    assert main(["wan.yaml", "--meta"]) == 2


def test_the_latest_checkpoint_is_named(tmp_path: Path) -> None:
    toy_trainer(toy_config(tmp_path, max_steps=1), ToyStage()).run()
    path = latest_checkpoint(tmp_path / "checkpoints")
    assert path is not None
    assert set(load_checkpoint(path)[1]) == {"minutes", "config", "bases", "step", "files"}


def test_an_update_asks_the_device_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whether it is finite; all other numbers stay where they are until the log's line is due."""
    config = distillation_config(tmp_path)
    trainer = Trainer(config, DistillationStage(), make_accelerator(config))
    trainer.update(trainer.tick(), trainer.stage.batch)
    asked: list[str] = []
    with monkeypatch.context() as patched:
        for name in ("__bool__", "__float__", "__int__", "item", "tolist"):
            plain = vars(torch.Tensor).get(name) or vars(torch._C.TensorBase)[name]

            def noted(self: torch.Tensor, *rest: Any, name: str = name, plain: Any = plain) -> Any:
                asked.append(name)
                return plain(self, *rest)

            patched.setattr(torch.Tensor, name, noted)
        metrics = trainer.update(trainer.tick(), trainer.stage.batch)
    assert asked == ["__bool__"]
    assert {"critic/loss", "critic/grad_norm", "critic/lr"} <= metrics.keys()


def test_a_batch_moves_as_a_whole() -> None:
    """Tensors of dataclasses, mappings and lists in it; all else stays what it is."""
    config = LoraConfig(rank=3)
    batch = {"a": [torch.ones(2), (torch.ones(1), None)], "b": config, "c": 3}
    found = moved(batch, torch.device("meta"))
    assert found["a"][0].is_meta
    assert found["a"][1][0].is_meta
    assert (found["a"][1][1], found["b"], found["c"]) == (None, config, 3)
    told = ToldBatch(torch.zeros(1, 2), torch.zeros(1, 1), {"colour": torch.zeros(1, 1)})
    assert moved(told, torch.device("meta")).labels["colour"].is_meta
