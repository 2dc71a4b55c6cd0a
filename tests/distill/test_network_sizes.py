"""Networks of a run that differ: larger teachers, critics of another start, and how frozen ones are held."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distill.families.tiny
import distill.held
from distill.config import ConfigError, FrozenConfig
from distill.dry_run import estimate
from distill.families.config import NetworkConfig, WanTeacher
from distill.held import lend
from distill.objectives import ObjectiveConfig, SiDConfig
from distill.sharding import units
from distill.stages import build_stage, load_run
from distill.stages.causal import CausalStage
from distill.stages.scorers import Rolled
from distill.stages.self_forcing import SelfForcingStage
from distill.stages.self_forcing_config import CriticConfig, SelfForcingRun
from distill.trainer import Tick, Trainer, make_accelerator
from models.causal_dit import CausalDiT
from streamgen.errors import CheckpointError
from streamgen.wan.weights import gather
from tests.processes import forget_processes, run_processes
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, NETWORK, causal_run, export, init_run, self_forcing_run
from tests.tiny_wan import small_config, write_published
from tests.toy_distillation import distillation_config, train
from tests.toy_stage import final_state
from tests.wan_stages import self_forcing_run as wan_run

LARGE = NetworkConfig(
    dim=48, layers=3, heads=4, ffn_dim=40, text_dim=12, text_layers=2, text_length=6, motion_channels=6
)
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "distill" / "wan-1.3b"


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    forget_processes()


def larger_teacher(tmp_path: Path) -> Path:
    """The checkpoint of a causal model twice as wide as the student."""
    found = tmp_path / "large"
    return (
        found if found.exists() else export(CausalStage(causal_run(tmp_path, network=LARGE), CPU), found, 6)
    )


def config_of(tmp_path: Path, **changes: Any) -> SelfForcingRun:
    """A large causal teacher, a small critic of the student's start that sees windows, a small student."""
    start = init_run(tmp_path).teacher
    critic = CriticConfig(updates=1, warmup=0, init=start, scoring="windows")
    options = {"teacher": str(larger_teacher(tmp_path)), "init": start, "scoring": "chunks", "critic": critic}
    return self_forcing_run(tmp_path, **options | changes)


def stage_of(tmp_path: Path, **changes: Any) -> SelfForcingStage:
    """The stage with random networks."""
    stage = SelfForcingStage(config_of(tmp_path, **changes), CPU)
    randomize(stage.student, 5)
    randomize(stage.critic, 7)
    return stage


def rolled_by(stage: SelfForcingStage, updates: int = 2) -> Rolled:
    """A window in the middle of streams."""
    stage.streams = None
    batch = replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), limit=99, first=False)
    with torch.no_grad():
        for _ in range(updates):
            rolled = stage.roll(stage.student, batch, with_gradient=False)
    return rolled


def test_a_large_teacher_for_a_small_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network has the sizes of its start; both are trained, and the export is the student's."""
    config = config_of(tmp_path, max_steps=2)
    own = lambda directory: NETWORK  # noqa: E731

    def check() -> None:
        try:
            stage = SelfForcingStage(config, CPU)
        except CheckpointError as error:
            raise AssertionError(str(error)) from None
        assert stage.teacher.dit.config.dim == LARGE.dim
        assert stage.critic.dit.config.dim == stage.student.dit.config.dim == NETWORK.dim
        assert stage.teacher.motion_encoder.config.channels == LARGE.motion_channels
        for module in (stage.student, stage.critic):
            loss, _ = stage.loss(module, replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), first=False))
            loss.backward()
            assert any(p.grad is not None for p in module.parameters())
        counted = estimate(config, SelfForcingStage)
        assert counted.frozen["teacher"][0] == sum(p.numel() for p in stage.teacher.parameters())
        assert counted.frozen["teacher"][0] > 2 * counted.modules[0].count

    assert_needs(check, monkeypatch, distill.families.tiny, "network_sizes", own)


def test_a_causal_teacher_beside_a_bidirectional_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher scores the new chunks behind the streams' past, as beside a causal critic; the critic sees
    the window as a whole.
    """
    mixed = stage_of(tmp_path)
    alike = stage_of(tmp_path, critic=replace(mixed.config.critic, scoring=None))
    for stage in (mixed, alike):
        randomize(stage.teacher, 8)
    rolled = rolled_by(mixed)
    shown, new = rolled.window.x.shape[1], rolled.new
    assert (shown, new) == (5, 3)
    draw = torch.Generator().manual_seed(3)
    noisy = torch.randn(rolled.window.x.shape, generator=draw)
    changed = noisy.clone()
    changed[:, -1] += 1
    levels = torch.full(noisy.shape[:2], 0.6)

    @torch.no_grad()
    def check() -> None:
        scores = mixed.scorers.scores(rolled, torch.Generator().manual_seed(0))
        both = alike.scorers.scores(rolled_by(alike), torch.Generator().manual_seed(0))
        real = scores.real(noisy, levels)
        assert real.shape == noisy.shape
        torch.testing.assert_close(real[:, -new:], both.real(noisy[:, -new:], levels[:, -new:]))
        # what comes later tells the critic, and not the teacher
        assert (scores.fake(changed, levels)[:, 0] - scores.fake(noisy, levels)[:, 0]).abs().max() > 1e-4
        assert torch.equal(scores.real(changed, levels)[:, :-1], real[:, :-1])

    assert_needs(check, monkeypatch, SelfForcingRun, "critic_scoring", "chunks")


@pytest.mark.parametrize("objective", [None, SiDConfig()], ids=["dmd", "sid"])
def test_a_teacher_in_half_precision_that_lies_elsewhere(
    tmp_path: Path, objective: ObjectiveConfig | None
) -> None:
    """Losses and gradients are nearly those of a whole one, though one goes through the teacher."""
    extra: dict[str, Any] = {} if objective is None else {"objective": objective}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, frozen in (("plain", FrozenConfig()), ("held", FrozenConfig(("teacher",), "bf16", True))):
        stage = stage_of(tmp_path, frozen=frozen, **extra)
        accelerator = make_accelerator(stage.config)
        Trainer(stage.config, stage, accelerator)
        assert stage.teacher.dit.head.head.weight.dtype == frozen.dtype
        batch = replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), first=False)
        loss, _ = stage.loss(stage.student, batch)
        loss.backward()
        gradient = stage.student.dit.patch_embedding.weight.grad
        assert gradient is not None
        found[name] = loss.detach(), gradient
    torch.testing.assert_close(found["held"][0], found["plain"][0], rtol=0.05, atol=1e-3)
    one, other = (gradient.flatten() for _, gradient in found.values())
    assert torch.cosine_similarity(one, other, 0) > 0.99


def test_lent_parts_are_elsewhere_only_while_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block at a time, and what its network has beside; what is computed is that of the lent weights."""
    from models.context import BidirectionalContext
    from tests.tiny_models import tiny_dit

    def velocity(dit: CausalDiT) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 2, 4, 4, 6, generator=draw)
        text = dit.embed_text(torch.randn(1, 3, 8, generator=draw))
        context = BidirectionalContext(dit.rope, 2, (2, 3), CPU)
        return dit(
            latents, torch.full((1, 2), 500.0), text, context, torch.randn(1, 2, 3, 4, 6, generator=draw)
        )

    doubled = tiny_dit()
    for parameter in doubled.parameters():
        parameter.data *= 2
    expected = velocity(doubled)

    def check() -> None:
        dit = tiny_dit()
        home = {p: p.data.clone() for p in dit.parameters()}
        put, away = distill.held._Visit._put, []

        def counted(visit: Any, parameters: list[nn.Parameter]) -> None:
            put(visit, parameters)
            away.append(sum(p.numel() for p in dit.parameters() if p not in home))

        lend(dit, lambda tensor: tensor * 2)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(distill.held._Visit, "_put", counted)
            torch.testing.assert_close(velocity(dit), expected)
        assert away[-1] == 0
        assert set(dit.parameters()) == set(home)
        assert all(torch.equal(p, before) for p, before in home.items())
        blocks = sum(p.numel() for p in dit.blocks.parameters())
        rest = sum(p.numel() for p in dit.parameters()) - blocks
        assert rest < max(away) <= rest + blocks / 2

    whole = lambda module: []  # noqa: E731
    assert units(tiny_dit())
    assert_needs(check, monkeypatch, distill.held, "units", whole)


@pytest.mark.slow
def test_shares_of_a_frozen_network_may_lie_on_the_cpu(tmp_path: Path) -> None:
    """Two processes with shares of the teacher on the CPU learn what they learn with it at hand."""
    for name, frozen in (("near", FrozenConfig()), ("far", FrozenConfig(("teacher",), "fp32", True))):
        config = distillation_config(tmp_path / name, parallel="fsdp2", frozen=frozen)
        assert run_processes(2, train, config) == ["", ""]
    torch.testing.assert_close(final_state(tmp_path / "far"), final_state(tmp_path / "near"))


def test_names_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    frozen = FrozenConfig(("teachers",), "bf16")
    with pytest.raises(ConfigError, match=r"frozen\.networks: expected some of teacher, found teachers"):
        train(distillation_config(tmp_path, frozen=frozen))


def test_published_files_of_another_size(tmp_path: Path) -> None:
    """A Wan teacher that is wider than student and critic; what does not read the same latents is refused."""
    wide = ("dit.dim=48", "dit.heads=4", "dit.layers=3")
    weights = tmp_path / "wide"
    write_published(weights)
    config = small_config("wan-1.3b-motion", *wide)
    made = randomize(CausalDiT(replace(config.dit, motion_channels=0)), 4)
    torch.save({"generator": made.state_dict()}, weights / "models" / "longlive_base.pt")
    (tmp_path / "prompts.txt").write_text("a red boat\n")
    run = wan_run(tmp_path, None, prompts=str(tmp_path / "prompts.txt"), teacher=str(weights))
    assert run.wan is not None
    base = next(name for name in config.sources.dit if name.startswith("models/"))
    overrides = (
        *run.wan.overrides,
        *wide,
        f"sources.dit=[{base}]",
        "sources.lora=[]",
        "sources.lora_rank=null",
    )
    options = replace(run.wan, teacher=WanTeacher(overrides=overrides))
    critic = replace(run.critic, init=run.init)
    run = replace(run, wan=options, critic=critic)
    stage = build_stage(run, CPU)
    assert isinstance(stage, SelfForcingStage)
    found = gather(
        replace(config, sources=replace(config.sources, lora=(), lora_rank=None)), weights, ("dit",)
    )
    assert found.dit is not None
    plain = "blocks.2.ffn.2.weight"
    assert torch.equal(stage.teacher.dit.state_dict()[plain], found.dit[plain])
    assert (stage.teacher.dit.config.dim, stage.critic.dit.config.dim) == (48, 24)
    assert stage.student.dit.config.dim == 24
    loss, _ = stage.loss(stage.student, stage.batch(Tick(0, 0, 0, 1, 1, 0.5)))
    loss.backward()
    other = replace(options, teacher=WanTeacher(overrides=(*overrides, "text.length=9")))
    with pytest.raises(ConfigError, match=r"as the run's model, 16 x 6 x 16, found 16 x 9 x 16"):
        build_stage(replace(run, wan=other), CPU)


@pytest.mark.slow
def test_the_plan_for_a_teacher_of_14_billion() -> None:
    """Counted and shared out without a file: the teacher in bf16, student and critic of 1.3B."""
    config = load_run(CONFIGS / "self_forcing_14b.yaml")
    cost = estimate(config, SelfForcingStage, 64)
    count, size = cost.frozen["teacher"]
    assert 14.2e9 < count < 14.4e9
    assert size == 2 * count // 64
    assert all(1.7e9 < part.count < 1.8e9 for part in cost.modules)
    assert not any("CPU" in line for line in cost.lines(config))
    away = replace(config, frozen=replace(config.frozen, offload=True))
    lines = estimate(away, SelfForcingStage, 64).lines(away)
    assert lines[-1].startswith("memory of the CPU for teacher 42")
    assert sum("frozen 484 MiB" in line for line in lines) == 1
