"""Gradients through what a stream has committed: the rollout's values, and the gradient of the whole."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import distill.flow
import distill.running
from distill import activation
from distill.activation import checkpoint_blocks
from distill.config import ConfigError
from distill.context_gradient import Exit, StudentRunner, through_context
from distill.guidance import strengths_over
from distill.running import RunningStreams, Script
from distill.stages.self_forcing import SelfForcingStage
from distill.trainer import Tick
from models.context import ChunkPlan
from streamgen import load_pipeline
from streamgen.engine.guidance import Conditioning, Guidance, guided_velocity
from streamgen.engine.noise import SeededNoise
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import x0_from_velocity
from streamgen.errors import CheckpointError
from streamgen.stream.latents import LatentChunk, LatentState
from streamgen.stream.prompts import Text
from streamgen.stream.recache import ByChunk
from streamgen.stream.rollout import settle
from tests.rolled_streams import GRID, SIGMAS, script_of
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, init_run, self_forcing_run

LEARNING = Sampling(SIGMAS, renoise=True, context_sigma=0.05, exit_step=1, with_gradient=True)
WRITING = {"context_gradient": "self", "writer": 2}
PLANS = [ChunkPlan(1, 1, 1, 3), ChunkPlan(2, 2, 2, 4)]


def stage_of(tmp_path: Path, plan: ChunkPlan, **rollout: Any) -> SelfForcingStage:
    """A stage with a random student."""
    run = self_forcing_run(tmp_path)
    scoring: Literal["windows", "chunks"] = "windows"
    if plan.chunk_frames == 1:
        start, scoring = init_run(tmp_path, plan=plan).teacher, "chunks"
        run = replace(run, teacher=start, init=start)
    frames = {"window_frames": 2 * plan.chunk_frames, "fresh_frames": 2 * plan.chunk_frames}
    run = replace(run, plan=plan, scoring=scoring, rollout=replace(run.rollout, **frames, **rollout))
    run = replace(run, sampling={"context_noise": run.rollout.context_noise})
    stage = SelfForcingStage(replace(run, script=replace(run.script, switch_share=0.0)), CPU)
    randomize(stage.student, 7)
    return stage


def streams_of(stage: SelfForcingStage, script: Script) -> RunningStreams:
    return RunningStreams(script, LatentState(stage.student.new_cache(len(script.words), GRID)), 5)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("switch", "tracks"), [(None, True), (8, False)])
def test_streams_are_those_of_a_plain_rollout(
    tmp_path: Path, plan: ChunkPlan, switch: int | None, tracks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over updates, evictions and a switch with its recache, though the second pass says otherwise."""
    stage = stage_of(tmp_path, plan)
    script = script_of(stage, switch, tracks)

    def check() -> None:
        plain, both = streams_of(stage, script), streams_of(stage, script)
        for _ in range(4):
            expected = stage.student(plain, 4, LEARNING)[0]
            found = stage.student(both, 4, LEARNING, None, True)[0]
            assert found.requires_grad
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            latents = [streams.state.context[-1].latents for streams in (plain, both)]
            torch.testing.assert_close(*latents, rtol=1e-4, atol=1e-4)

    assert_needs(check, monkeypatch, distill.running, "with_gradient_of", lambda values, other: other)


def chunk_by_chunk(
    stage: SelfForcingStage,
    script: Script,
    before: tuple[LatentChunk, ...],
    made: list[LatentChunk],
    exits: list[Exit],
) -> Tensor:
    """What `through_context` computes, as a stream does it: each chunk behind a cache of committed ones."""
    student, noise = stage.student, SeededNoise(5, CPU)
    texts = [student.dit.embed_text(student.text_encoder(script.words[:, i])) for i in (0, 2)]
    words, runner = Text("words", texts[0]), StudentRunner(student.dit)
    told = []
    for chunk in (*before, *made):
        tracks = script.tracks_of(torch.arange(chunk.start, chunk.start + chunk.frames))
        told.append((tracks, student.motion(tracks, GRID)))
    chunks = [
        replace(chunk, text=words, motion=motion)
        for chunk, (_, motion) in zip((*before, *made), told, strict=True)
    ]
    first = len(before)
    state = LatentState(student.new_cache(1, GRID), context=tuple(chunks[:first]), chunk=first)
    if before:
        state = ByChunk().rebuild(runner, state, noise, "refresh", words)
    out = []
    for number, exit_ in enumerate(exits):
        chunk, (tracks, motion) = chunks[first + number], told[first + number]
        places = torch.arange(chunk.start, chunk.start + chunk.frames)
        over = strengths_over(script.strengths, tracks.state, student.plan, places)
        view = state.ring.view(state.cursor, chunk.frames)
        given = Conditioning(texts[0], texts[1], motion, Guidance(1.0, 0.0), over)
        velocity = guided_velocity(student.dit, exit_.x, exit_.sigma, given, view)
        out.append(x0_from_velocity(exit_.x, velocity, torch.full(exit_.x.shape[:2], exit_.sigma)))
        state = settle(runner, state.followed_by(chunk), noise)
    return torch.cat(out, 1)


def without_context(velocity: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A velocity as a rollout has it: keys and values of the past without gradient."""

    def plain(self: Any, x: Tensor, *rest: Any) -> Tensor:
        past = rest[-1]
        context, seen = self._context(x, past.x.shape[1], past.copies), past.x.shape[1]
        attend = context.attend

        def detached(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cut = seen * (k.shape[1] // (seen + x.shape[1]))
            parts = [torch.cat([part[:, :cut].detach(), part[:, cut:]], 1) for part in (k, v)]
            return attend(layer, q, *parts)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(context, "attend", detached)
            return velocity(self, x, *rest)

    return plain


@pytest.mark.parametrize(("plan", "writer"), [(PLANS[0], 0), (PLANS[1], 0), (PLANS[0], 2)])
def test_the_gradient_is_that_of_committing_and_denoising(
    tmp_path: Path, plan: ChunkPlan, writer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along random directions of all weights, those of a writer among them, against differences of a stream
    that is committed and denoised chunk by chunk under these, its latents as they are.
    """
    stage = stage_of(tmp_path, plan, **WRITING | {"writer": writer} if writer else {})
    script = script_of(stage, None, True)
    student = stage.student
    streams = streams_of(stage, script)
    kept: dict[str, Any] = {}

    def keep(student: Any, script: Script, before: Any, made: Any, exits: Any, noise: Any) -> Tensor:
        kept.update(before=before, made=made, exits=exits)
        return through_context(student, script, before, made, exits, noise)

    with monkeypatch.context() as patched:
        patched.setattr(distill.running, "through_context", keep)
        for _ in range(3):
            student(streams, 2 * plan.chunk_frames, LEARNING, None, True)
    assert len(kept["before"]) == plan.context_frames // plan.chunk_frames
    parameters = [p for p in student.dit.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(torch.cat([c.latents for c in kept["made"]], 1).shape, generator=generator)

    def loss_of(latents: Tensor) -> Tensor:
        return (latents.double() * target).sum()

    @torch.no_grad()
    def moved(direction: list[Tensor], step: float) -> float:
        for parameter, part in zip(parameters, direction, strict=True):
            parameter.add_(part, alpha=step)
        value = float(loss_of(chunk_by_chunk(stage, script, **kept)))
        for parameter, part in zip(parameters, direction, strict=True):
            parameter.sub_(part, alpha=step)
        return value

    def check() -> None:
        student.zero_grad(set_to_none=True)
        noise = SeededNoise(5, CPU)
        latents = through_context(student, script, **kept, noise=noise)
        torch.testing.assert_close(latents, chunk_by_chunk(stage, script, **kept), rtol=1e-4, atol=1e-4)
        gradients = torch.autograd.grad(loss_of(latents), parameters, allow_unused=True)
        for seed in range(3):
            draws = torch.Generator().manual_seed(seed)
            direction = [
                0.1 * p.std(correction=0) * torch.randn(p.shape, generator=draws) for p in parameters
            ]
            expected = (moved(direction, 0.01) - moved(direction, -0.01)) / 0.02
            found = sum(
                float((g * d).sum().detach())
                for g, d in zip(gradients, direction, strict=True)
                if g is not None
            )
            assert found == pytest.approx(expected, rel=0.02, abs=0.02 * float(target.norm()))

    without = without_context(type(student).velocity)
    assert_needs(check, monkeypatch, type(student), "velocity", without)
    if writer:
        assert_needs(check, monkeypatch, distill.flow, "written", lambda frames: nullcontext())


def test_the_stage_learns_through_the_context(tmp_path: Path) -> None:
    """With the option on, also in mixed precision, every parameter of the student gets a gradient."""
    stage = stage_of(tmp_path, PLANS[0], context_gradient="self")
    batch = replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), limit=99, first=False)
    for precision in (False, True):
        stage.streams = None
        stage.student.zero_grad(set_to_none=True)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision):
                loss, _ = stage.loss(stage.student, batch)
        loss.backward()
        missing = [n for n, p in stage.student.named_parameters() if p.grad is None]
        assert all(name.startswith("heads.") for name in missing), missing


def test_blocks_that_are_computed_again_know_what_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(tmp_path, PLANS[0], **WRITING)
    script = script_of(stage, None, True)

    def gradients(recompute: bool) -> dict[str, Tensor]:
        student = copy.deepcopy(stage.student)
        if recompute:
            checkpoint_blocks(student.dit)
        streams = streams_of(stage, script)
        for _ in range(2):
            made = student(streams, 2, LEARNING, None, True)[0]
        made.square().mean().backward()
        return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}

    def check() -> None:
        try:
            found = gradients(True)
        except RuntimeError as error:
            raise AssertionError(str(error)) from error
        assert any(".writer_" in name and bool(grad.any()) for name, grad in found.items())
        torch.testing.assert_close(found, gradients(False), rtol=1e-4, atol=1e-6)

    assert_needs(check, monkeypatch, activation, "written_frames", lambda: None)


def test_a_writer_is_learned_saved_and_streamed(tmp_path: Path) -> None:
    """Every parameter of it gets a gradient; its export opens streams, and a run goes on from it."""
    stage = stage_of(tmp_path, PLANS[0], **WRITING)
    batch = replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), limit=99, first=False)
    for _ in range(2):
        loss, _ = stage.loss(stage.student, batch)
    loss.backward()
    assert all(p.grad is not None for name, p in stage.student.named_parameters() if ".writer_" in name)
    groups = stage.optimizer_groups()["student"]
    matrices = {id(p) for p in groups.matrices}
    assert not any(id(p) in matrices for n, p in stage.student.named_parameters() if ".writer_" in n)
    (tmp_path / "export").mkdir()
    stage.export(tmp_path / "export")
    pipeline = load_pipeline(tmp_path / "export")
    assert pipeline.dit.config.writer == 2
    assert pipeline.settings.context_noise == stage.config.rollout.context_noise
    assert len(next(pipeline.open("a red circle")).frames)
    again = SelfForcingStage(replace(stage.config, init=str(tmp_path / "export")), CPU)
    kept = again.student.state_dict()
    for name, value in stage.student.state_dict().items():
        torch.testing.assert_close(kept[name], value, rtol=1e-2, atol=1e-2)
    other = replace(stage.config.rollout, writer=3)
    with pytest.raises(CheckpointError, match=r"expected a writer of rank 3 .*found one of rank 2"):
        SelfForcingStage(replace(stage.config, init=str(tmp_path / "export"), rollout=other), CPU)


def test_a_writer_that_nothing_teaches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.writer: expected 0 without rollout\.context_gradient"):
        stage_of(tmp_path, PLANS[0], writer=2)
    stage = stage_of(tmp_path, PLANS[0], **WRITING)
    with pytest.raises(ConfigError, match=r"sampling\.context_noise: expected 0.05, at which the writer"):
        SelfForcingStage(replace(stage.config, sampling={}), CPU)


def test_plans_whose_past_is_no_sequence_are_refused(tmp_path: Path) -> None:
    plan = ChunkPlan(3, 1, 1, 3)
    start = init_run(tmp_path, plan=plan).teacher
    run = self_forcing_run(tmp_path, teacher=start, init=start)
    rollout = replace(run.rollout, window_frames=4, fresh_frames=3, context_gradient="self")
    with pytest.raises(ConfigError, match=r"context_gradient: expected none without a sink of whole chunks"):
        SelfForcingStage(replace(run, plan=plan, rollout=rollout), CPU)
