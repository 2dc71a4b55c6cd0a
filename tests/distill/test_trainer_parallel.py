"""Several processes: data-parallel and sharded training equal one process, and so do their checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill import checkpoint, parallel, sharding
from distill.checkpoint import latest_checkpoint, load_checkpoint
from distill.config import CheckpointConfig, ConfigError, PreviewConfig
from distill.errors import TrainingError
from distill.sharding import ShardedModule, check_sharded, units
from distill.trainer import Tick, Trainer
from models.causal_dit import CrossAttention, DiTBlock
from streamgen.errors import CheckpointError
from tests.processes import forget_processes, run_processes
from tests.tiny_models import tiny_dit
from tests.toy_distillation import DistillationStage, Net, distillation_config, train
from tests.toy_stage import assert_same, final_state

PREVIEWS = PreviewConfig(every_steps=3, every_minutes=None, at_start=True, at_end=True)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    forget_processes()


def assert_close(left: Any, right: Any) -> None:
    """States of two runs equal up to the order of sums."""
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def scores(run_dir: Path) -> list[float]:
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["score"] for row in rows if '"preview"' in row]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shards"), [("ddp", None), ("fsdp2", None), ("hsdp", 2)])
def test_several_processes_equal_one(
    tmp_path: Path, kind: str, shards: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two, or two copies of two shares each."""
    options: dict[str, Any] = {"preview": PREVIEWS, "activation_checkpointing": kind == "fsdp2"}
    train(distillation_config(tmp_path / "one", **options))
    count = 2 if shards is None else 4
    config = distillation_config(tmp_path / "two", parallel=kind, shards=shards, gradient_clip=0.1, **options)
    one_config = distillation_config(tmp_path / "one", gradient_clip=0.1, **options)
    forget_processes()
    train(one_config, resume="none")
    assert run_processes(count, train, config) == [""] * count
    one, two = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    assert_close(two, one)
    assert_close(scores(tmp_path / "two"), scores(tmp_path / "one")[-3:])
    exported = [torch.load(tmp_path / run / "export" / "student.pt") for run in ("one", "two")]
    assert_close(exported[1], exported[0])

    # without its mechanism, each process follows its own half of the batch
    with monkeypatch.context() as patched:
        patched.setattr(parallel.Parallel, "prepare", lambda _, module: (module, None))
        apart = distillation_config(tmp_path / "apart", parallel=kind, shards=shards)
        assert run_processes(count, train, apart) == [""] * count
    with pytest.raises(AssertionError):
        assert_close(final_state(tmp_path / "apart"), one)


@pytest.mark.slow
def test_a_checkpoint_of_shares_is_read_by_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes write it, each its own part; two go on from it exactly, and so does one, and what one has
    written so two read.
    """

    def config(name: str, steps: int, kind: str = "fsdp2", sharded: bool = True) -> Any:
        kept = CheckpointConfig(every_steps=None, every_minutes=None, sharded=sharded)
        return distillation_config(tmp_path / name, max_steps=steps, parallel=kind, checkpoint=kept)

    assert run_processes(2, train, config("whole", 5, sharded=False)) == ["", ""]
    for steps in (2, 5):
        assert run_processes(2, train, config("parts", steps)) == ["", ""]
    path = latest_checkpoint(tmp_path / "parts" / "checkpoints")
    assert path is not None
    assert {file.name for file in path.iterdir()} == {
        *("state.pt", "meta.json", "shards", "stage-rank-00000.pt", "stage-rank-00001.pt")
    }
    sizes = [file.stat().st_size for file in (path / "shards").glob("__*.distcp")]
    assert len(sizes) == 2
    assert max(sizes) < 0.7 * sum(sizes)
    monkeypatch.setattr("distill.trainer.load_stage_state", lambda *_: {"stream": torch.zeros(6)})
    forget_processes()
    train(config("parts", 5, "ddp", sharded=False), resume=str(path))
    exported = [torch.load(tmp_path / run / "export" / "student.pt") for run in ("whole", "parts")]
    assert_same(exported[1], exported[0])
    forget_processes()
    train(config("one", 2, "ddp"))
    assert run_processes(2, train, config("one", 5)) == ["", ""]
    assert_close(torch.load(tmp_path / "one" / "export" / "student.pt"), exported[0])


@pytest.mark.slow
def test_a_sharded_run_resumes_exactly_and_its_weights_load_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str, steps: int, kind: str = "fsdp2") -> Any:
        return distillation_config(tmp_path / name, max_steps=steps, parallel=kind)

    for name, steps in (("whole", 5), ("parts", 2), ("parts", 5)):
        assert run_processes(2, train, config(name, steps), 0.5) == ["", ""]
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    path = latest_checkpoint(tmp_path / "parts" / "checkpoints")
    assert path is not None
    assert {file.name for file in path.iterdir()} == {
        "state.pt",
        "meta.json",
        "stage-rank-00000.pt",
        "stage-rank-00001.pt",
    }

    # one process reads the sharded run's state, but not its two streams
    with pytest.raises(CheckpointError, match="running state of 2 processes, this run has 1"):
        train(config("parts", 6, "ddp"), pull=0.5)
    forget_processes()
    monkeypatch.setattr("distill.trainer.load_stage_state", lambda *_: {"stream": torch.zeros(6)})
    train(config("parts", 5, "ddp"))
    exported = torch.load(tmp_path / "parts" / "export" / "student.pt")
    average = load_checkpoint(path)[0]["ema"]["student"]
    assert all(torch.equal(exported[name], value) for name, value in average.items() if name != "#updates")


def test_what_fails_in_one_process_stops_both(tmp_path: Path) -> None:
    class Broken(DistillationStage):
        def batch(self, tick: Tick) -> torch.Tensor:
            batch = super().batch(tick)
            return batch * float("nan") if (tick.step, tick.rank) == (3, 1) else batch

    def nan() -> None:
        config = distillation_config(tmp_path / "nan", parallel="fsdp2")
        Trainer(config, Broken(), parallel.make_accelerator(config)).run()

    place = tmp_path / "nan" / "nonfinite" / "step-000000003"
    errors = run_processes(2, nan)
    assert all("TrainingError: step 3: loss" in error and str(place) in error for error in errors), errors
    kept = [torch.load(place / f"batch-rank-0000{rank}-micro-00.pt") for rank in range(2)]
    assert [bool(batch.isnan().any()) for batch in kept] == [False, True]
    state = load_checkpoint(place / "step-000000003")[0]
    assert all(bool(value.isfinite().all()) for value in state["modules"]["critic"].values())

    def full() -> None:
        config = distillation_config(tmp_path / "full", max_steps=1)
        accelerator = parallel.make_accelerator(config)
        if accelerator.process_index == 1:

            def no_space(_: int) -> None:
                raise OSError(28, "No space left on device")

            checkpoint._flush = no_space
        Trainer(config, DistillationStage(), accelerator).run()

    errors = run_processes(2, full)
    assert all("CheckpointError" in error and "No space left" in error for error in errors), errors
    assert not list((tmp_path / "full" / "checkpoints").iterdir())


def test_a_sharded_module_keeps_no_whole_parameter() -> None:
    def check() -> None:
        accelerator = parallel.make_accelerator(distillation_config(Path("unused")))
        mesh = parallel.Parallel(accelerator, "fsdp2").mesh
        assert mesh is not None
        net = Net(1)
        names = list(net.state_dict())
        shards = ShardedModule(net, mesh)
        check_sharded(net)
        assert all(2 * p.to_local().numel() <= p.numel() + 7 for p in net.parameters())
        values = {"first.bias": net.first.bias.detach() + 1}
        with shards.whole(values, accelerator.is_main_process):
            if accelerator.is_main_process:
                assert type(net) is Net
                assert list(net.state_dict()) == names
                assert type(net.features(torch.ones(2, 6))) is torch.Tensor
                assert torch.equal(net.first.bias, Net(1).first.bias + 1)
        check_sharded(net)
        assert torch.equal(sharding.whole(net.first.bias), Net(1).first.bias)
        # the way in beside forward, without forward having been called before
        features = net.features(torch.ones(2, 6))
        torch.testing.assert_close(features, Net(1).features(torch.ones(2, 6)))

    assert run_processes(2, check) == ["", ""]
    with pytest.raises(TrainingError, match=r"left 10 parameters of Net whole: first\.weight"):
        check_sharded(Net(1))


def test_the_networks_units() -> None:
    dit = tiny_dit()
    found = units(nn.ModuleDict({"dit": dit}))
    kinds = [type(part) for part in found]
    assert kinds == [CrossAttention, DiTBlock, CrossAttention, DiTBlock, type(dit)]
    assert sharding.entry_points(dit) == ("embed_text",)
    assert sharding.entry_points(dit.blocks[0].cross_attn) == ("project",)


def test_a_sharded_transformer_equals_a_whole_one() -> None:
    """Its text keys come from inside the blocks, by a method that is not `forward`."""
    from models.context import BidirectionalContext

    def velocity(dit: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 2, 4, 4, 6, generator=generator)
        text = dit.embed_text(torch.randn(1, 3, 8, generator=generator))
        context = BidirectionalContext(dit.rope, 2, (2, 3), torch.device("cpu"))
        return dit(latents, torch.full((1, 2), 500.0), text, context)

    expected = tiny_dit()
    velocity(expected).square().mean().backward()

    def check() -> None:
        accelerator = parallel.make_accelerator(distillation_config(Path("unused")))
        mesh = parallel.Parallel(accelerator, "fsdp2").mesh
        assert mesh is not None
        dit = tiny_dit()
        ShardedModule(dit, mesh)
        velocity(dit).square().mean().backward()
        for name, parameter in dit.named_parameters():
            assert parameter.grad is not None, name
            torch.testing.assert_close(
                sharding.whole(parameter.grad), expected.get_parameter(name).grad, rtol=1e-4, atol=1e-6
            )

    assert run_processes(2, check) == ["", ""]


@pytest.mark.parametrize(("changes", "what"), [({"parallel": "fsdp2"}, "parallel: fsdp2"), ({}, "lora")])
def test_muon_needs_whole_matrices(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    from distill.config import LoraConfig, OptimConfig

    changes = changes or {"lora": LoraConfig()}
    with pytest.raises(ConfigError, match=f"{what} needs optim.matrices: adamw, found muon"):
        distillation_config(tmp_path, optim=OptimConfig(), **changes)
