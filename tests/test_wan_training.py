"""The stages on Wan-shaped networks: published weights in, a folder that streams out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState

from distill.stages import build_stage
from distill.trainer import Trainer, make_accelerator
from streamgen import load_pipeline
from tests.wan_stages import CPU, causal_run, init_run, self_forcing_run, teacher_run, write_clips


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_clips(tmp_path / "clips", monkeypatch)


def train(config: Any) -> Any:
    stage = build_stage(config, CPU)
    Trainer(config, stage, make_accelerator(config)).run("none")
    return stage


@pytest.mark.parametrize("make", [teacher_run, causal_run, init_run, self_forcing_run])
def test_two_updates_of_each_stage_on_own_clips(tmp_path: Path, clips: Path, make: Any) -> None:
    """What is exported streams with the networks as they were trained, tracks included."""
    config = make(tmp_path, clips)
    stage = train(config)
    pipeline = load_pipeline(Path(config.run_dir) / "export", "cpu")
    assert next(pipeline.open("a zebra walks")).frames.shape[1:] == (32, 48, 3)
    assert pipeline.plan == config.plan
    start = build_stage(config, CPU)
    before, after = start.network.dit.patch_embedding.weight, stage.network.dit.patch_embedding.weight
    assert not before[:, 16:].any()
    assert after[:, 16:].abs().sum() > 0
