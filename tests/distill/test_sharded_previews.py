"""Previews that all processes make together show what one process with whole networks shows."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.config import ConfigError, LoraConfig, OptimConfig, PreviewConfig
from distill.parallel import end_processes, make_accelerator
from distill.samples import stream
from distill.sharding import ShardedModule
from distill.stages import build_stage
from distill.trainer import Trainer
from streamgen import Pipeline
from tests.processes import forget_processes, run_processes
from tests.tiny_stages import self_forcing_run

PREVIEW = PreviewConfig(every_steps=3, every_minutes=None, at_start=False, at_end=False, sharded=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def shown(pipeline: Pipeline, _folder: Any, out_dir: Path, _streams: bool) -> None:
        torch.save(stream(pipeline, "a big red circle over the sea", 3, 9), out_dir / "shown.pt")

    monkeypatch.setattr("distill.families.tiny.preview_sheets", shown)
    monkeypatch.setattr("distill.tracking.write_plots", lambda *_: [])
    yield
    forget_processes()


def train(config: Any) -> None:
    accelerator = make_accelerator(config)
    Trainer(config, build_stage(config, accelerator.device), accelerator).run("none")
    end_processes(accelerator)


@pytest.mark.slow
def test_shares_show_what_whole_networks_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages of adapters beside weights that stay in shares: the third update is the student's first."""

    def shown(name: str, sharded: bool) -> Tensor:
        config = self_forcing_run(
            tmp_path,
            run_dir=str(tmp_path / name),
            max_steps=4,
            parallel="fsdp2",
            preview=replace(PREVIEW, sharded=sharded),
            optim=OptimConfig(matrices="adamw", lr=0.05, warmup_steps=0),
            lora=LoraConfig(rank=2, alpha=2.0),
        )
        assert run_processes(2, train, config) == ["", ""]
        (file,) = (tmp_path / name / "previews").glob("*/*")
        pictures: Tensor = torch.load(file)
        return pictures.float()

    monkeypatch.setattr(Trainer, "_finish", lambda *_: None)
    whole = shown("whole", sharded=False)
    with monkeypatch.context() as patched:
        patched.setattr(ShardedModule, "whole", None)
        # up to a level of rounding
        torch.testing.assert_close(shown("shares", sharded=True), whole, rtol=0, atol=1)
    monkeypatch.setattr("distill.ema.Ema.applied", lambda _: nullcontext())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(shown("present", sharded=True), whole, rtol=0, atol=1)


def test_shares_are_not_exported() -> None:
    with pytest.raises(ConfigError, match=r"preview\.weights: expected false with preview\.sharded, found"):
        PreviewConfig(weights=True, sharded=True)
