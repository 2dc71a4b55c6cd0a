"""Streams in training: told as in use, rolled out as in use, saved and carried on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import distill.flow
import distill.running
from distill.config import ConfigError
from distill.flow import Condition, FlowNetwork, Past, guided
from distill.guidance import GuidanceRange, strengths_over
from distill.running import (
    RolloutStudent,
    RunningStreams,
    ScriptConfig,
    draw_script,
    draw_switch,
    prompt_script,
)
from distill.stages import load_run
from distill.stages.scorers import Rolled
from distill.stages.self_forcing import SelfForcingRun, SelfForcingStage
from distill.trainer import Tick
from models.context import ChunkPlan, SequenceFrame
from models.kv_cache import CacheRing
from streamgen.engine.guidance import Conditioning, Guidance, guided_velocity, joint_guidance
from streamgen.engine.noise import SeededNoise
from streamgen.engine.runner import PlainRunner
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import FlowMatchScheduler
from streamgen.stream.latents import LatentChunk, LatentState
from streamgen.stream.prompts import Text
from streamgen.stream.recache import ByChunk
from streamgen.stream.rollout import settle
from tests.rolled_streams import GRID, SAMPLING, SIGMAS, rolled, script_of, streamed
from tests.tiny_models import assert_needs, randomize, tiny_cache, tiny_dit
from tests.tiny_stages import CPU, WINDOWS, init_run, self_forcing_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> SelfForcingStage:
    """A self_forcing stage whose student has random weights everywhere."""
    made = SelfForcingStage(self_forcing_run(tmp_path_factory.mktemp("stage")), CPU)
    randomize(made.student, 7)
    return made


@pytest.mark.parametrize(("switch", "tracks"), [(None, False), (7, False), (7, True)])
def test_training_rolls_out_what_a_session_streams(
    stage: SelfForcingStage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    switch: int | None,
    tracks: bool,
) -> None:
    """Same weights, words, tracks and draws: equal latents, across evictions, a switch with its recache, and
    a track that ends; with the gradient of the exit step on as well.
    """
    script = script_of(stage, switch, tracks)
    expected = streamed(stage, script, switch, tmp_path / "export")

    def check() -> None:
        for gradient in (False, True):
            sampling = replace(SAMPLING, with_gradient=gradient, exit_step=len(SIGMAS) - 2)
            found = rolled(stage, script, 12, sampling)
            assert found.requires_grad is gradient
            torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)

    if switch is None:
        check()
    else:
        assert_needs(check, monkeypatch, ByChunk, "rebuild", lambda self, runner, state, *rest: state)


def test_only_the_exit_step_of_each_chunk_runs_with_gradient(
    stage: SelfForcingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, bool]] = []
    original = stage.student.dit.forward

    def counted(latents: Tensor, timesteps: Tensor, *rest: Any) -> Tensor:
        calls.append((round(float(timesteps[0, 0])), torch.is_grad_enabled()))
        return original(latents, timesteps, *rest)

    monkeypatch.setattr(stage.student.dit, "forward", counted)
    script = script_of(stage, None, False)
    for exit_step in (0, 1):
        calls.clear()
        rolled(stage, script, 3, Sampling(SIGMAS, renoise=True, exit_step=exit_step, with_gradient=True))
        steps = [(round(1000 * sigma), i == exit_step) for i, sigma in enumerate(SIGMAS[: exit_step + 1])]
        assert calls == [*steps, (0, False)] * 3


def test_mixed_precision_loses_no_gradient(stage: SelfForcingStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are first used without gradient, then with: autocast must not keep the first copies."""
    script = script_of(stage, None, True)

    stage.student.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        latents = rolled(
            stage,
            script,
            3,
            Sampling(SIGMAS, renoise=True, context_sigma=0.05, exit_step=1, with_gradient=True),
        )
    latents.square().mean().backward()
    missing = [n for n, p in stage.student.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing, missing


def test_streams_go_on_after_saving(stage: SelfForcingStage) -> None:
    script = script_of(stage, 6, True)
    streams = RunningStreams(script, LatentState(stage.student.new_cache(1, GRID)), 5)
    with torch.no_grad():
        whole = torch.cat([stage.student(streams, n, SAMPLING)[0] for n in (5, 3, 3)], 1)
        first = RunningStreams(script, LatentState(stage.student.new_cache(1, GRID)), 5)
        parts = [stage.student(first, 5, SAMPLING)[0]]
        again = RunningStreams.load(first.save(), stage.student.new_cache(1, GRID))
        assert (again.frames, again.switched) == (5, False)
        parts.append(stage.student(again, 3, SAMPLING)[0])
        last = RunningStreams.load(again.save(), stage.student.new_cache(1, GRID))
        assert last.switched
        parts.append(stage.student(last, 3, SAMPLING)[0])
    assert torch.equal(torch.cat(parts, 1), whole)
    recent = last.recent(2)
    assert recent is not None
    assert torch.equal(recent, whole[:, -2:])


def test_windows_join_what_was_and_what_is_new(stage: SelfForcingStage) -> None:
    """A stream's first window is all new; later ones show three new frames behind two known ones, until the
    limit begins a new stream.
    """
    stage.streams = None
    places = []
    for step in range(6):
        with torch.no_grad():
            batch = stage.batch(Tick(step, 0, 0, 1, 1, 0.5))
            rolled = stage.roll(stage.student, batch, with_gradient=False)
        window, start = rolled.window, int(rolled.places[-5])
        assert window.x.shape[1] == 5
        assert torch.equal(stage.streams.recent(3), window.x[:, -3:])
        assert rolled.places[-5:].tolist() == [*range(start, start + 5)]
        assert torch.equal(rolled.seen[:, -5:], window.x)
        places.append((start, int(window.fresh.sum())))
    assert places == [(0, 5), (3, 3), (6, 3), (0, 5), (3, 3), (6, 3)]


def test_first_chunks_alone_leave_running_streams_where_they_are(tmp_path: Path) -> None:
    """A share of the updates sees other streams' first chunk, under both ways of scoring."""
    config = init_run(tmp_path)
    for changes in ({}, {"teacher": config.teacher, "scoring": "chunks"}):
        made = self_forcing_run(tmp_path, **changes)
        rollout = replace(made.rollout, first_share=0.5, first_batch=3)
        stage = SelfForcingStage(replace(made, rollout=rollout), CPU)
        kinds = []
        for step in range(12):
            batch, before = stage.batch(Tick(step, 0, 0, 1, 1, 0.5)), stage.streams
            frames = None if before is None else before.frames
            with torch.no_grad():
                rolled = stage.roll(stage.student, batch, with_gradient=False)
                real = stage.scorers.scores(rolled, torch.Generator()).real
                made = rolled.window.x
                assert real(made, torch.full(made.shape[:2], 0.5)).shape == made.shape
            kinds.append(batch.first)
            assert batch.first == (rolled.places.tolist() == [0])
            assert len(rolled.window.x) == (3 if batch.first else 2)
            if batch.first:
                assert stage.streams is before
                assert frames == (None if before is None else before.frames)
        assert {*kinds} == {True, False}


def shipped(tmp_path: Path) -> SelfForcingStage:
    """The shipped recipe's plan, rollout and scoring, with random networks of seconds."""
    config = load_run(ROOT / "configs" / "distill" / "tiny" / "self_forcing.yaml")
    assert isinstance(config, SelfForcingRun)
    assert config.scoring == "chunks"
    rollout = replace(config.rollout, batch=2, steps=2, context_noise=0.0)
    changes = {"plan": config.plan, "rollout": rollout, "scoring": "chunks", "script": config.script}
    start = init_run(tmp_path, plan=config.plan).teacher
    stage = SelfForcingStage(self_forcing_run(tmp_path, teacher=start, init=start, **changes), CPU)
    for number, network in enumerate((stage.student, stage.teacher)):
        randomize(network, 5 + number)
    return stage


def teacher_goes_on(
    stage: SelfForcingStage, rolled: Rolled, noisy: Tensor, sigmas: Tensor, after: bool
) -> list[list[Tensor]]:
    """By stream and new chunk the guided velocity of the teacher as it would stream: its cache rebuilt from
    what the stream had in its context, then chunk after chunk committed.
    """
    teacher, seen = stage.teacher, rolled.seen
    tracks, script = rolled.script.tracks_of(rolled.places), rolled.script
    first, motion = seen.shape[1] - noisy.shape[1], teacher.motion(tracks, GRID)
    encoded = [teacher.dit.embed_text(teacher.text_encoder(script.words[:, i])) for i in (int(after), 2)]
    words, runner, noise = Text("words", encoded[0]), PlainRunner(teacher.dit), SeededNoise(0, CPU)
    chunks = [
        LatentChunk(i, i, seen[:, i : i + 1], motion[:, i : i + 1], words) for i in range(seen.shape[1])
    ]
    state = LatentState(_cache_of(stage), context=tuple(chunks[:first]), chunk=first)
    state = ByChunk().rebuild(runner, state, noise, "refresh", words)
    over = strengths_over(script.strengths, tracks.state, stage.config.plan, rolled.places)
    expected: list[list[Tensor]] = [[], []]
    for number in range(noisy.shape[1]):
        at, view = first + number, state.ring.view(state.cursor, 1)
        for row, found in enumerate(expected):
            told = Conditioning(*encoded, motion[:, at : at + 1], Guidance(*over[row, at].tolist()))
            sigma = float(sigmas[row, number])
            piece = noisy[:, number : number + 1]
            found.append(guided_velocity(teacher.dit, piece, sigma, told, view)[row])
        state = settle(runner, state.followed_by(chunks[at]), noise)
    return expected


def without_the_window(streams: RunningStreams) -> tuple[Tensor | None, Tensor]:
    """What was once scored behind: the sink and the last three latent frames."""
    held, places = _CONTEXT(streams)
    kept = (places == 0) | (places >= streams.frames - 3)
    return (None, places) if held is None else (held[:, kept], places[kept])


_CONTEXT = RunningStreams.context


@pytest.mark.parametrize("switch", [None, 15])
def test_chunks_are_scored_as_a_stream_of_the_teacher_would_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: int | None
) -> None:
    """On the shipped config's shape: the real score of each new chunk is the guided velocity of the causal
    teacher on a cache of all that the stream has in its context, after a switch under the new words.
    """
    stage = shipped(tmp_path)
    batch = replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), limit=99, first=False)
    batch = replace(batch, script=replace(batch.script, switch=switch))

    def check() -> None:
        stage.streams = None
        for number in range(3):
            rolled = stage.roll(stage.student, batch, with_gradient=False)
            new = rolled.window.x.shape[1]
            assert new == (6 if number else 9)
        assert rolled.places.tolist() == [0, *range(7, 15), *range(15, 21)]
        noisy = torch.randn(rolled.window.x.shape, generator=torch.Generator().manual_seed(3))
        sigmas = torch.linspace(0.3, 0.9, 2 * new).view(2, new)
        scores = stage.scorers.scores(rolled, torch.Generator())
        found = (noisy - scores.real(noisy, sigmas)) / sigmas[..., None, None, None]
        expected = teacher_goes_on(stage, rolled, noisy, sigmas, switch is not None)
        for row in range(2):
            torch.testing.assert_close(found[row], torch.cat(expected[row]), rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        assert_needs(check, monkeypatch, RunningStreams, "context", without_the_window)


def test_updates_of_the_shipped_recipe_never_span_a_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All frames that an update scores are told the same, so that the past is committed under their words."""
    stage = shipped(tmp_path)
    stage.config = replace(stage.config, script=replace(stage.config.script, switch_share=1.0))

    def check() -> None:
        switches = set()
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            switch = stage.script(2, generator).switch
            assert switch is not None
            switches.add(switch)
        begins = {9, 15, 21, 27}
        assert switches <= begins
        assert len(switches) > 1

    anywhere = lambda begins, config, draws: int(torch.randint(3, 25, (), generator=draws))  # noqa: E731
    assert_needs(check, monkeypatch, distill.running, "draw_switch", anywhere)
    script = replace(stage.config.script, switch_from=10, switch_to=14)
    with pytest.raises(ConfigError, match=r"begin, \[9, 15, 21, 27\], between them, found \(10, 14\)"):
        draw_switch([9, 15, 21, 27], script, torch.Generator())


def _cache_of(stage: SelfForcingStage) -> CacheRing:
    """An empty cache of the teacher's sizes."""
    return RolloutStudent.new_cache(stage.teacher, 2, GRID)  # type: ignore[arg-type]


def test_tracks_of_a_stretch_are_those_of_the_whole(stage: SelfForcingStage) -> None:
    """Encoded stretch by stretch, motion is what it is in one piece; past its end there is none."""
    script = script_of(stage, None, True)
    whole = stage.student.motion(script.tracks, GRID)
    assert whole.shape[1] == 6
    parts = [
        stage.student.motion(script.tracks_of(torch.arange(start, start + 2)), GRID) for start in (0, 2, 4, 6)
    ]
    torch.testing.assert_close(torch.cat(parts[:3], 1), whole)
    assert not parts[3].any()


def test_scripts_switch_in_their_share_and_at_chunks(stage: SelfForcingStage) -> None:
    generator = torch.Generator().manual_seed(0)
    config = ScriptConfig(switch_share=0.5, switch_from=3, switch_to=9)
    scripts = [
        draw_script(stage.clips, 3, [1, 4, 7, 9, 13], config, WINDOWS, GuidanceRange(), generator)
        for _ in range(200)
    ]
    switched = [script for script in scripts if script.switch is not None]
    assert 70 < len(switched) < 130
    assert {script.switch for script in switched} == {4, 7, 9}
    for script in scripts:
        assert bool((script.strengths.sum(1) >= 1).all())
        if script.switch is not None:
            assert not script.tracks.state.any()
            assert not any(torch.equal(*pair) for pair in script.words[:, :2])
        assert torch.equal(
            script.segment(torch.arange(2, 6))[0],
            torch.tensor([int((script.switch or 99) <= t) for t in (2, 3, 4, 5)]),
        )


def test_strengths_are_those_of_a_stream() -> None:
    """Where no track says anything in a chunk there is no motion guidance, and text has at least 1."""
    state = torch.zeros(2, 1, 17, dtype=torch.int8)
    state[0, 0, 7] = 1
    strengths = torch.tensor([[0.5, 2.0], [0.5, 2.0]])
    alone = strengths_over(strengths, state, ChunkPlan(1, 1, 1, 3))
    assert alone[0].tolist() == [[1, 0], [1, 0], [0.5, 2], [1, 0], [1, 0]]
    assert alone[1].tolist() == [[1, 0]] * 5
    grouped = strengths_over(strengths, state[:, :, 1:], ChunkPlan(3, 1, 1, 3), torch.arange(1, 5))
    assert grouped[0].tolist() == [[0.5, 2]] * 3 + [[1, 0]]


def test_prompts_alone_make_scripts() -> None:
    prompts = [(torch.tensor([i, 0]), torch.tensor([i, 0])) for i in range(2, 12)]
    generator = torch.Generator().manual_seed(0)
    always = ScriptConfig(switch_share=1.0)
    script = prompt_script(prompts, 64, [5, 8], always, GuidanceRange(), generator)
    assert script.words.shape == (64, 3, 2)
    assert not script.words[:, 2].any()
    changed = (script.words[:, 0] != script.words[:, 1]).any(1)
    assert float(changed.float().mean()) > 0.7
    assert not script.tracks.state.any()
    assert script.switch is not None


def test_guided_windows_equal_guided_streams() -> None:
    """Joint guidance over whole windows and over a chunk of a stream are one formula."""
    network = FlowNetwork(*networks(), ChunkPlan(1, 1, 1, 3))
    dit = network.dit
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 4, 4, 6, generator=generator)
    motion = torch.randn(2, 1, 3, 4, 6, generator=generator)
    words = torch.randn(2, 2, 5, 8, generator=generator)
    segment = torch.zeros(2, 1, dtype=torch.long)
    strengths = torch.tensor([2.0, 3.0]).expand(2, 1, 2)
    condition = Condition(dit.embed_text(words, segment), motion, strengths)
    with torch.no_grad():
        found = guided(network, x, torch.full((2, 1), 0.6), condition)
        cache = tiny_cache(dit, network.plan, batch=2)
        cache.begin(1)
        told = Conditioning(
            dit.embed_text(words[:, 0]), dit.embed_text(words[:, 1]), motion, Guidance(2.0, 3.0)
        )
        expected = guided_velocity(dit, x, 0.6, told, cache)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("plan", "copies"), [((1, 1, 1, 3), 1), ((1, 1, 1, 3), 2), ((2, 2, 2, 4), 2)])
def test_branches_behind_a_past_do_not_see_each_other(
    plan: tuple[int, int, int, int], copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance behind a committed past, all branches in one pass, is that of three passes."""
    network = FlowNetwork(*networks(), ChunkPlan(*plan))
    generator = torch.Generator().manual_seed(0)
    x, clean = torch.randn(2, 2, 6, 4, 4, 6, generator=generator)
    x = torch.cat([x] * copies, 1) * torch.linspace(0.5, 1, 6 * copies)[:, None, None, None]
    motion = torch.randn(2, 6, 3, 4, 6, generator=generator)
    own = torch.cat([motion] * copies, 1)
    keys = network.dit.embed_text(
        torch.randn(2, 2, 5, 8, generator=generator), torch.zeros(2, 6, dtype=torch.long)
    )
    told = torch.zeros(2, 6 * copies, dtype=torch.long)
    sigma = torch.full((2, 6 * copies), 0.6)
    past = Past(clean, torch.zeros(2, 6), told[:, :6], motion, copies)
    strengths = torch.tensor([2.0, 3.0]).expand(2, 6 * copies, 2)

    def branch(segment: Tensor, tracks: Tensor) -> Tensor:
        return network.velocity(x, sigma, replace(keys, segment=segment), tracks, None, past)

    def check() -> None:
        network._contexts.clear()
        condition = Condition(replace(keys, segment=told), own, strengths)
        found = guided(network, x, sigma, condition, past)
        expected = joint_guidance(*apart, 2.0, 3.0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    with torch.no_grad():
        apart = branch(told, own), branch(told + 1, own), branch(told, torch.zeros_like(own))
        if plan[0] == 1:
            # what copies see of each other there has a test of its own (test_packed)
            check()
        else:
            alike = lambda index, copy=0, **role: SequenceFrame(index, **role)  # noqa: E731
            assert_needs(check, monkeypatch, distill.flow, "SequenceFrame", alike)


def networks() -> tuple[Any, Any, Any]:
    """A random DiT, and no encoders."""
    return tiny_dit(), torch.nn.Identity(), torch.nn.Identity()


def test_a_share_of_first_chunks_begins_at_clips_of_other_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As live input does: from a level below 1, with the gradient of the exit step."""
    made = self_forcing_run(tmp_path)
    rollout = replace(made.rollout, first_share=1.0, first_batch=3, input_share=0.5)
    stage = SelfForcingStage(replace(made, rollout=rollout), CPU)
    randomize(stage.student, 7)
    levels = FlowMatchScheduler(rollout.steps, rollout.shift).sigmas()
    denoise, tasks = PlainRunner.denoise, []

    def noted(self: PlainRunner, task: Any) -> Tensor:
        tasks.append(task)
        return denoise(self, task)

    monkeypatch.setattr(PlainRunner, "denoise", noted)
    for step in range(8):
        batch = stage.batch(Tick(step, 0, 0, 1, 1, 0.5))
        rolled = stage.roll(stage.student, batch, with_gradient=True)
        task = tasks[-1]
        assert rolled.window.x.requires_grad
        assert (task.source is None) == (batch.pictures is None)
        if task.source is None:
            assert task.sampling.sigmas == levels
            continue
        assert task.sampling.sigmas == levels[batch.begin :]
        assert 1 <= batch.begin <= batch.exit_step < rollout.steps
        rows = [(stage.clips.latents[:, :1].float() == one).flatten(1).all(1) for one in task.source.latents]
        captions = [stage.clips.words[row, 0].long() for row in rows]
        for words, found in zip(batch.script.words[:, 0], captions, strict=True):
            assert len(found) >= 1
            assert not (found == words).all(1).all()
    assert {task.source is None for task in tasks} == {True, False}
    with pytest.raises(ConfigError, match=r"rollout\.input_share: expected 0 without rollout\.first_share"):
        replace(rollout, first_share=0.0)
