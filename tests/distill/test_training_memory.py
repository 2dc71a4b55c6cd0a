"""Networks that a machine cannot hold are refused before they are allocated."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import distill.memory
from distill.__main__ import main
from distill.config import ConfigError
from distill.dry_run import estimate
from distill.memory import check_memory
from distill.stages.init import InitStage
from distill.stages.tokenizer import TokenizerRun, TokenizerStage
from distill.tokenizer_loss import LossConfig
from models.video_tokenizer import VideoTokenizer
from tests.processes import forget_processes
from tests.tiny_stages import init_run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    forget_processes()


def test_what_stays_in_memory_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes on a CPU share what is free; where that cannot be told all are let through."""
    config = init_run(tmp_path)
    cost = estimate(config, InitStage)
    needed = sum(m.parameters + m.gradients + m.optimizer + m.average for m in cost.modules)
    needed += sum(size for _, size in cost.frozen.values())
    monkeypatch.setattr(distill.memory, "free_bytes", lambda device: needed)
    check_memory(config, InitStage, 1, CPU)
    with pytest.raises(ConfigError, match="in each of 2 processes"):
        check_memory(config, InitStage, 2, CPU)
    monkeypatch.setattr(distill.memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ConfigError, match=r"parameters .* gradients .* optimizers .* average .* frozen"):
        check_memory(config, InitStage, 1, CPU)
    monkeypatch.setattr(distill.memory, "free_bytes", lambda device: None)
    check_memory(config, InitStage, 1000, CPU)


def test_the_tokenizer_stage_is_counted_without_being_allocated(tmp_path: Path) -> None:
    config = TokenizerRun("tokenizer", str(tmp_path), 1, 0, loss=LossConfig(adversarial=0.1))
    cost = estimate(config, TokenizerStage)
    size = sum(p.numel() for p in VideoTokenizer(config.model).parameters())
    assert [module.name for module in cost.modules] == ["tokenizer", "critic"]
    assert cost.modules[0].count == size


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = init_run(tmp_path)
    monkeypatch.setattr("distill.stages.load_run", lambda *_: config)
    monkeypatch.setattr(distill.memory, "free_bytes", lambda device: 1000)
    assert main(["init.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: memory: the networks of this config need")
    assert "1000 B are free" in error
    assert error.count("\n") == 1
    assert not Path(config.run_dir).exists()
