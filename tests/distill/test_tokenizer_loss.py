"""The tokenizer's further terms: a reader's view, a game against a critic, codebooks in training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import distill.tokenizer_loss
from distill.config import ConfigError
from distill.evaluation.features import ReaderFeatures
from distill.scenes import SceneConfig
from distill.stages import build_stage
from distill.stages.tokenizer import TokenizerStage
from distill.tokenizer_loss import Clips, LossConfig, PatchCritic, TokenizerLoss
from distill.trainer import Tick, Trainer, make_accelerator
from models.video_tokenizer import VideoTokenizer
from tests.distill.test_frechet import painted
from tests.distill.test_tokenizer_stage import CPU, MODEL, run_config
from tests.processes import forget_processes
from tests.tiny_models import assert_needs, randomize

NOTHING = LossConfig(l1=0, mse=0, temporal=0, kl=0, object=0, motion=0)


def clips(video: Tensor) -> Clips:
    return Clips(video, torch.zeros_like(video[:, :, :1]), torch.zeros_like(video[:, :, :1]))


def with_answer(video: Tensor, config: LossConfig) -> TokenizerLoss:
    """The loss of a tokenizer that gives `video`."""
    perceptual = ReaderFeatures(SceneConfig(size=32), CPU) if config.perceptual else None
    module = TokenizerLoss(VideoTokenizer(MODEL), config, perceptual)
    posterior = module.tokenizer.encode(torch.zeros(1, 1, 3, 16, 16))
    module.reconstruction = lambda given: (video, posterior)  # type: ignore[method-assign]
    return module


def test_the_reader_sees_another_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A square of another colour costs twice its share of the pixels, weighted; equal ones nothing."""
    right, wrong = painted(0, [(8, 8)]), painted(4, [(8, 8)])

    def check() -> None:
        costs = {}
        for name, video in (("same", right), ("other", wrong)):
            module = with_answer(video, replace(NOTHING, perceptual=0.5))
            loss, told = module(clips(right))
            assert float(loss.detach()) == pytest.approx(0.5 * float(told["perceptual"]), abs=1e-6)
            costs[name] = float(told["perceptual"])
        assert costs["same"] == 0
        # two maps differ on a square of 10 x 10 of 32 x 32 pixels, less its edge
        assert costs["other"] == pytest.approx(2 * 100 / 1024, rel=0.3)

    blind = lambda self, pictures: torch.zeros(len(pictures), 1, 32, 32)  # noqa: E731
    assert_needs(check, monkeypatch, ReaderFeatures, "maps", blind)


def test_the_game_has_its_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a judgement that is the brightness times a weight: what pulls the decoded, and what the critic."""
    real, made = torch.full((2, 1, 3, 16, 16), 0.7), torch.full((2, 1, 3, 16, 16), 0.2).requires_grad_()
    weight = nn.Parameter(torch.tensor(3.0))
    judge = lambda video: weight * video.mean((2, 3, 4))  # noqa: E731
    lead = 3 * (0.2 - 0.7)
    pull = torch.sigmoid(torch.tensor(-lead))

    def check() -> None:
        made.grad, weight.grad = None, None
        loss, _ = with_answer(made, replace(NOTHING, adversarial=0.4))(clips(real), judge)
        loss.backward()
        assert made.grad is not None
        torch.testing.assert_close(made.grad.sum(), -0.4 * pull * 3)
        critic = PatchCritic(0, penalty=0.0)
        critic.logits = judge  # type: ignore[method-assign]
        weight.grad = None
        loss, told = critic(real, made.detach())
        loss.backward()
        torch.testing.assert_close(weight.grad, torch.sigmoid(torch.tensor(lead)) * (0.2 - 0.7))
        assert float(told["right"]) == 1

    turned = lambda x: torch.nn.functional.softplus(-x)  # noqa: E731
    assert_needs(check, monkeypatch, distill.tokenizer_loss, "softplus", turned)


@pytest.mark.slow
def test_a_picture_is_pulled_to_what_the_critic_has_seen() -> None:
    """Alone in the game a grey picture takes on the brightness of the clips."""
    torch.manual_seed(0)
    made = torch.zeros(4, 2, 3, 16, 16).requires_grad_()
    real = torch.full((4, 2, 3, 16, 16), 0.6) + 0.05 * torch.randn(4, 2, 3, 16, 16)
    critic = PatchCritic(1, width=8)
    own, other = torch.optim.Adam([made], 0.02, betas=(0.0, 0.9)), torch.optim.Adam(critic.parameters(), 2e-3)
    for step in range(160):
        if step % 2:
            loss, _ = critic(real, made.detach())
            other.zero_grad()
            loss.backward()
            other.step()
        else:
            loss, _ = with_answer(made, replace(NOTHING, adversarial=1.0))(clips(real), critic.logits)
            own.zero_grad()
            loss.backward()
            own.step()
    assert 0.3 < float(made.detach().mean()) < 0.9


@pytest.mark.slow
def test_critic_and_tokenizer_take_turns(tmp_path: Path) -> None:
    """Each learns in its own updates alone; without the term there is no critic."""
    config = run_config(tmp_path)
    assert TokenizerStage(config, CPU).critic is None
    stage = TokenizerStage(replace(config, loss=LossConfig(adversarial=0.1, perceptual=0.2)), CPU)
    assert [stage.target(step) for step in range(4)] == ["tokenizer", "critic"] * 2
    assert stage.critic is not None
    batch = stage.batch(Tick(1, 0, 0, 1, 1, 0.9))
    for name, module in stage.modules().items():
        randomize(module, 3)
        loss, told = stage.loss(module, batch)
        loss.backward()
        assert torch.isfinite(loss)
        for other, part in stage.modules().items():
            assert any(p.grad is not None for p in part.parameters()) == (other == name)
            part.zero_grad(set_to_none=True)
    assert {"lead", "right", "penalty"} <= set(told)
    with pytest.raises(ConfigError, match=r"loss\.adversarial: expected >= 0, found -1"):
        LossConfig(adversarial=-1)


@pytest.mark.slow
def test_codebooks_train_and_load(tmp_path: Path) -> None:
    """With all terms: a few updates, an export whose entries are used, and a checkpoint that goes on."""
    config = replace(
        run_config(tmp_path),
        model=replace(MODEL, bottleneck="vq", vq_codes=32, vq_groups=4),
        loss=LossConfig(adversarial=0.1, perceptual=0.2),
    )
    for steps in (2, 4):
        part = replace(config, max_steps=steps)
        Trainer(part, build_stage(part, CPU), make_accelerator(part)).run()
        forget_processes()
    again = TokenizerStage(replace(config, init=str(tmp_path / "export")), CPU)
    found = again.tokenizer.encode(again.batch(Tick(1, 0, 0, 1, 1, 0.9)).video)
    assert len(found.index.unique()) > 8  # type: ignore[attr-defined]
    assert float(found.commitment()) > 0
