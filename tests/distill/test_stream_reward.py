"""The reward of streams: what it says of the world's clips, its gradient, drags, and its place in a stage."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import distill.stream_reward
import distill.ways
from distill.config import ConfigError
from distill.drags import drag_paths, with_drags
from distill.reward import Labels, PictureReward, RewardConfig
from distill.running import Asked, RunningStreams, Script
from distill.scenes import COLOURS, MOTIONS, SHAPES, SceneBatch, SceneConfig, SceneGenerator
from distill.scenes.dynamics import DRAG_FRAMES, DRAG_TRAVEL
from distill.stages.self_forcing import SelfForcingStage
from distill.stream_reward import StreamReward
from distill.trainer import Tick
from distill.ways import Ways
from distill.words.told import ATTRIBUTES
from models.motion_encoder import UNSPECIFIED, VISIBLE, Tracks
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, self_forcing_run

WORLD = SceneConfig(size=64, camera_probability=0.0, change_probability=0.0, drag_probability=0.0).alone()


class Plain:
    """A codec whose latents are the pictures of a latent frame."""

    latent_mean = torch.zeros(1)

    def initial_state(self, *sizes: Any) -> int:
        return 0

    def denormalize(self, latents: Tensor, start: int) -> Tensor:
        return latents

    def decode_chunk(self, latents: Tensor, state: int) -> tuple[Tensor, int]:
        video = latents.reshape(len(latents), -1, 3, *latents.shape[-2:])
        # of the first only the last
        return (video if state else video[:, 3:]), 1


@functools.cache
def judge(**weights: float) -> StreamReward:
    codec: Any = Plain()
    config = RewardConfig(streams=1.0, weight=1.0, **weights)
    return StreamReward(PictureReward(config, WORLD, codec, CPU), codec, 9, CPU)


def latents_of(scene: SceneBatch) -> Tensor:
    video = scene.video.float().movedim(-1, 2) / 127.5 - 1
    whole = torch.cat([video[:, :1].expand(-1, 3, -1, -1, -1), video], 1)
    return whole.reshape(len(video), -1, 12, *video.shape[-2:])


def labels_of(scene: SceneBatch, segment: int = 0) -> dict[str, Tensor]:
    """All that could be said of the objects."""
    used = scene.radii[:, :, 0] > 0
    found = {name: scene.labels[name] for name in ("colour", "shape", "motion")}
    found = {name: labels[:, segment] for name, labels in found.items()} | {
        "size": scene.labels["size"][:, 0]
    }
    return {name: torch.where(used, label, len(ATTRIBUTES[name])) for name, label in found.items()}


def script_of(before: Labels, after: Labels, switch: int | None = None) -> Script:
    count = len(before["shape"])
    nothing = torch.zeros(count, 1, dtype=torch.long)
    silent = Tracks(torch.zeros(count, 1, 1, 2), nothing[..., None].to(torch.int8), nothing.bool(), nothing)
    return Script(
        torch.zeros(count, 3, 4).long(), switch, silent, torch.zeros(count, 2), Asked(before, after)
    )


def dragged_clips(count: int) -> tuple[Tensor, Script]:
    """Clips of two objects, one of which is dragged, and what is told in them."""
    world = replace(WORLD, drag_probability=1.0, object_weights=(0.0, 1.0))
    scene = SceneGenerator(world).sample(count, 81, 5)
    labels = labels_of(scene)
    script = script_of(labels, labels)
    dragged = scene.track_object[torch.arange(count), scene.dragged.any(2).int().argmax(1)]
    told = (scene.dragged & (scene.track_object == dragged[:, None])[..., None]).any(1)
    points = scene.centres[torch.arange(count), dragged][:, None]
    tracks = replace(script.tracks, points=points, state=told[:, None].to(torch.int8) * VISIBLE)
    assert script.asked is not None
    return latents_of(scene), replace(script, tracks=tracks, asked=replace(script.asked, dragged=dragged))


def judged(latents: Tensor, script: Script, start: int, count: int, **weights: float) -> dict[str, float]:
    """What is said of latents `start` to `start + count` behind eight others."""
    first = max(0, start - 8)
    places = torch.arange(first, start + count)
    loss, found = judge(**weights).loss(
        latents[:, first : start + count], latents[:, start : start + count], places, script
    )
    said = {name.rpartition("/")[2]: float(value) for name, value in found.items()}
    return {**said, "loss": float(loss)}


def test_every_motion_is_known_by_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the world that were not drawn for it, a little inaccurate; those that turn at the border do it
    where the border is.
    """
    draws = torch.Generator().manual_seed(1)
    paths = [distill.ways._drawn(motion, 32, 36, draws) for motion in range(len(MOTIONS))]
    paths = [path + torch.randn(path.shape, generator=draws) * 0.4 for path in paths]
    ways = Ways(36, 1, CPU)

    def check() -> None:
        for motion, path in enumerate(paths):
            right = (ways.apart(path).argmin(1) == motion).float().mean()
            assert float(right) > 0.85, MOTIONS[motion]

    assert_needs(check, monkeypatch, distill.ways, "_SHIFT", 64.0)


@pytest.mark.slow
def test_clips_of_the_world_do_as_they_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, script = dragged_clips(6)

    def check() -> None:
        for start, count in ((0, 9), (9, 6)):
            found = judged(latents, script, start, count)
            assert found["right"] > 0.85
            assert found["beside"] < 0.03
            # of what is dragged it is not asked to go its own way
            assert found["moves"] > 0.85
            assert found["off"] < 0.02
        asked = script.asked
        assert asked is not None
        others = {**asked.before, "motion": (asked.before["motion"] + 1) % len(MOTIONS)}
        wrong = replace(script, asked=Asked(others, others))
        assert judged(latents, wrong, 9, 6)["moves"] < 0.3
        away = replace(script.tracks, points=(script.tracks.points + 0.2) % 1)
        assert judged(latents, replace(script, tracks=away), 9, 6)["off"] > 0.2

    nobody = lambda script, places, before: torch.zeros(6, dtype=torch.bool)  # noqa: E731
    assert_needs(check, monkeypatch, distill.stream_reward, "_lately", nobody)


def test_an_object_that_changes_colour_is_followed_across_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = replace(WORLD, change_probability=1.0, change_margin=36, double_change_probability=0.0)
    scene = SceneGenerator(world).sample(24, 81, 3)
    latents, labels = latents_of(scene), [labels_of(scene, segment) for segment in (0, 1)]
    rows = scene.labels["changed"][:, 0].nonzero()[:, 0].tolist()
    assert len(rows) > 2

    def check() -> None:
        for row in rows:
            before, after = ({name: label[[row]] for name, label in one.items()} for one in labels)
            start = (int(scene.segment_start[row, 1]) + 3) // 4
            found = judged(latents[[row]], script_of(before, after, start), start, 6)
            assert found["moves"] == 1, row
            assert found["right"] > 0.6, row

    # without what it was before, it is nowhere in the pictures before
    places = StreamReward._places
    alone = lambda self, pictures, labels, others: places(self, pictures, labels, labels)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(StreamReward, "_places", alone)
        with pytest.raises((AssertionError, KeyError)):
            check()
    check()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["place", "way"])
def test_its_gradient_makes_a_stream_do_what_it_was_asked(part: str) -> None:
    latents, script = dragged_clips(2)
    if part == "place":
        shifted = replace(script.tracks, points=(script.tracks.points + torch.tensor([0.06, 0.0])) % 1)
        script = replace(script, tracks=shifted)
    else:
        assert script.asked is not None
        others = {**script.asked.before, "motion": (script.asked.before["motion"] + 1) % 4}
        script = replace(script, asked=Asked(others, others))
    weights = {"place": 0.0, "way": 0.0, part: 1.0, "beside": 0.0}
    none = {"place": 0.0, "way": 0.0, "beside": 0.0}
    start, count = 8, 6

    def loss(found: Tensor, weights: dict[str, float]) -> Tensor:
        seen = torch.cat([latents[:, :start], found], 1)
        return judge(**weights).loss(seen, found, torch.arange(start + count), script)[0]

    found = latents[:, start : start + count].clone().requires_grad_()
    before = loss(found, weights) - loss(found, none)
    (gradient,) = torch.autograd.grad(before, found)
    step = (found - 0.04 * gradient.sign()).detach()
    after = loss(step, weights) - loss(step, none)
    assert before.item() > 0.5
    assert after.item() < before.item() - 0.03


def test_drags_begin_where_objects_are_and_keep_inside() -> None:
    draws = torch.Generator().manual_seed(2)
    here = 0.16 + 0.68 * torch.rand(400, 2, generator=draws)
    way = 0.2 * (torch.rand(400, 2, generator=draws) - 0.5)
    path, length = drag_paths(here, way, draws)
    torch.testing.assert_close(path[:, 0], here)
    assert float(path.min()) >= 0.16 - 1e-6
    assert float(path.max()) <= 0.84 + 1e-6
    assert int(length.min()) == DRAG_FRAMES[0]
    assert int(length.max()) == DRAG_FRAMES[1]
    rows = torch.arange(400)
    ends = path[rows, length - 1]
    torch.testing.assert_close(ends, path[:, -1])
    assert float((ends - here).norm(dim=1).max()) * 64 <= DRAG_TRAVEL[1] + 1e-3
    against = ((ends - here) * way).sum(1) < 0
    assert 0.55 < float(against.float().mean()) < 0.9


def test_one_object_that_is_there_is_dragged() -> None:
    draws = torch.Generator().manual_seed(3)
    labels = {name: torch.zeros(8, 2, dtype=torch.long) for name in ATTRIBUTES}
    script = script_of(labels, labels)
    centre = 0.3 + 0.4 * torch.rand(8, 2, 6, 2, generator=draws)
    there = torch.tensor([[True, True], [True, False], [False, True], [False, False]] * 2)
    made = with_drags(script, 9, centre, there, draws)
    assert made.asked is not None
    assert made.asked.dragged is not None
    dragged, rows = made.asked.dragged, torch.arange(8)
    assert torch.equal(dragged >= 0, there.any(1))
    assert bool(there[rows, dragged.clamp(min=0)][dragged >= 0].all())
    state, first = made.tracks.state, 4 * 9 - 3
    assert not state[..., :first].any()
    assert not state[dragged < 0].any()
    told = (state[:, 0] == VISIBLE).sum(1)[dragged >= 0]
    assert bool(((told >= DRAG_FRAMES[0]) & (told <= DRAG_FRAMES[1])).all())
    begins = made.tracks.points[rows, 0, first][dragged >= 0]
    torch.testing.assert_close(begins, centre[rows, dragged.clamp(min=0), -1][dragged >= 0])
    assert bool((made.tracks_of(torch.arange(60, 64)).state == UNSPECIFIED).all())


def test_a_stage_asks_drags_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = self_forcing_run(tmp_path)
    reward = RewardConfig(streams=1.0, drags=1.0, weight=1.0)
    stage = SelfForcingStage(replace(made, reward=reward), CPU)
    randomize(stage.student, 7)
    assert stage.judge is not None
    streams = stage.judge.streams
    assert streams is not None
    # what random weights show is no object of any colour: one stands in for what is read
    centre, seen = torch.full((2, 3, 2, 2), 0.5), torch.ones(2, 3, 2, dtype=torch.bool)
    there = lambda self, pictures, labels, others: distill.stream_reward.Places(centre, seen)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(distill.stream_reward, "judgeable", lambda labels: seen[:, :, 0])
        patched.setattr(StreamReward, "_places", there)
        for step in range(1, 9):
            batch = stage.batch(Tick(step, 0, 0, 1, 1, 0.5))
            rolled = stage.roll(stage.student, batch, with_gradient=False)
            asked = rolled.script.asked
            assert asked is not None
            start = int(rolled.places[-rolled.new])
            if start and rolled.script.switch is None:
                assert asked.dragged is not None or (asked.drag is not None and asked.drag > start)
            if asked.dragged is not None:
                break
        else:
            raise AssertionError("no drag began")
    assert rolled.script.tracks.state.any()
    assert stage.streams is not None
    again = RunningStreams.load(stage.streams.save(), stage._new_cache(2))
    assert again.script.asked is not None
    assert torch.equal(again.script.asked.dragged, asked.dragged)
    assert all(torch.equal(again.script.asked.before[name], asked.before[name]) for name in asked.before)
    mine = torch.tensor(0.25)
    patched_loss = lambda self, seen, fresh, places, script: (mine, {"streams/reward/off": mine})  # noqa: E731
    monkeypatch.setattr(StreamReward, "loss", patched_loss)
    assert stage.judge.loss(rolled, None) == (mine, {"streams/reward/off": mine})


def test_where_streams_cannot_be_judged_it_is_refused(tmp_path: Path) -> None:
    made = self_forcing_run(tmp_path)
    told = r"reward\.streams: expected 0 without clips of the procedural world"
    with pytest.raises(ConfigError, match=told):
        SelfForcingStage(replace(made, reward=RewardConfig(streams=0.5), prompts="prompts.txt"), CPU)


def test_labels_beyond_all_classes_say_nothing() -> None:
    nothing = {name: torch.full((2, 1), len(classes)) for name, classes in ATTRIBUTES.items()}
    pictures = torch.zeros(2, 9, 12, 64, 64)
    found = judged(pictures, script_of(nothing, nothing), 0, 9)
    assert found == {"loss": 0}
    assert len(COLOURS) == 8
    assert len(SHAPES) == 6
