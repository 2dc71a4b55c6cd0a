"""The reward of streams: what it says of the world's clips, its gradient, drags, and its place in a stage."""

import functools
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import distill.reward.streams
import distill.reward.ways
from distill.config import ConfigError
from distill.reward.drags import drag_paths, with_drags
from distill.reward.pictures import Labels, PictureReward, RewardConfig
from distill.reward.streams import StreamReward
from distill.reward.ways import Ways
from distill.running import Asked, RunningStreams, Script
from distill.scenes import MOTIONS, SceneBatch, SceneConfig, SceneGenerator
from distill.scenes.attributes import CHANGE_KINDS
from distill.scenes.dynamics import DRAG_FRAMES, DRAG_TRAVEL
from distill.stages.self_forcing import SelfForcingStage
from distill.trainer import Tick
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
    paths = [distill.reward.ways._drawn(motion, 32, 36, draws) for motion in range(len(MOTIONS))]
    paths = [path + torch.randn(path.shape, generator=draws) * 0.4 for path in paths]
    ways = Ways(36, CPU)

    def check() -> None:
        for motion, path in enumerate(paths):
            right = (ways.held(path, torch.arange(36)).apart.argmin(1) == motion).float().mean()
            assert float(right) > 0.85, MOTIONS[motion]

    assert_needs(check, monkeypatch, distill.reward.ways, "_SHIFT", 64.0)


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
    assert_needs(check, monkeypatch, distill.reward.streams, "_lately", nobody)


def test_objects_that_jump_between_pictures_are_unsteady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of the world are steady; where from one latent frame on all is 3 pixels further, they are not."""
    scene = SceneGenerator(WORLD).sample(12, 81, 7)
    latents, labels = latents_of(scene), labels_of(scene)
    script = script_of(labels, labels)
    jumps = torch.cat([latents[:, :11], latents[:, 11:].roll(3, -1)], 1)

    def check() -> None:
        steady, jolted = (judged(video, script, 9, 6) for video in (latents, jumps))
        assert steady["jolts"] < 0.1
        assert jolted["jolts"] > steady["jolts"] + 0.1
        weights = {"way": 0.0, "place": 0.0}
        without, with_steps = (judged(jumps, script, 9, 6, steps=s, **weights)["loss"] for s in (0.0, 2.0))
        assert with_steps - without == pytest.approx(2 * jolted["jolts"], rel=1e-3)

    assert_needs(check, monkeypatch, distill.reward.streams, "_JOLT", 100.0)


_places, _moves = StreamReward._places, StreamReward._moves
#: What makes each change be judged: without the colour before, an object is nowhere in the pictures before;
#: without the labels after, it has the shape before; with the pictures before, it moves as it did.
CHANGES: dict[str, tuple[object, str, object]] = {
    "colour": (StreamReward, "_places", lambda self, shown, new, old: _places(self, shown, new, new)),
    "shape": (Asked, "labels", lambda self, after: self.before),
    "motion": (
        StreamReward,
        "_moves",
        lambda self, where, before, labels, changes, dragged: _moves(
            self, where, before, labels, torch.zeros_like(changes), dragged
        ),
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changes_is_judged_by_what_it_was_and_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = replace(WORLD, change_probability=1.0, change_margin=36, double_change_probability=0.0)
    scene = SceneGenerator(world).sample(24, 81, 3)
    latents, labels = latents_of(scene), [labels_of(scene, segment) for segment in (0, 1)]
    rows = scene.labels["changed"][:, CHANGE_KINDS.index(kind)].nonzero()[:, 0].tolist()
    assert len(rows) > 2

    def check() -> None:
        found = []
        for row in rows:
            before, after = ({name: label[[row]] for name, label in one.items()} for one in labels)
            start = (int(scene.segment_start[row, 1]) + 3) // 4
            found.append(judged(latents[[row]], script_of(before, after, start), start, 6))
        # the world, too, takes some frames to change a motion
        assert sum(one.get("moves", 0.0) for one in found) > 0.5 * len(rows)
        assert sum(one["right"] for one in found) > 0.7 * len(rows)

    assert_needs(check, monkeypatch, *CHANGES[kind])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["place", "way", "steps"])
def test_its_gradient_makes_a_stream_do_what_it_was_asked(part: str) -> None:
    latents, script = dragged_clips(2)
    if part == "place":
        shifted = replace(script.tracks, points=(script.tracks.points + torch.tensor([0.06, 0.0])) % 1)
        script = replace(script, tracks=shifted)
    elif part == "steps":
        # from the second of the fresh frames on all is further
        latents = torch.cat([latents[:, :9], latents[:, 9:].roll(3, -1)], 1)
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
    # what is read of parts of a pixel is worth a small step alone
    way = 0.3 * gradient / gradient.norm() if part == "steps" else 0.04 * gradient.sign()
    step = (found - way).detach()
    after = loss(step, weights) - loss(step, none)
    most, better = (0.1, 0.01) if part == "steps" else (0.5, 0.03)
    assert before.item() > most
    assert after.item() < before.item() - better


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


def test_drags_begin_where_the_last_picture_shows_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies before: of a stream's context the sink is far back."""
    scene = SceneGenerator(WORLD).sample(6, 81, 9)
    latents, labels = latents_of(scene), labels_of(scene)
    places = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(7, 15)])
    inside = ((scene.centres[:, 0, 56] > 0.2) & (scene.centres[:, 0, 56] < 0.8)).all(1)
    assert int(inside.sum()) > 2

    def check() -> None:
        streams: Any = types.SimpleNamespace(
            script=script_of(labels, labels), frames=15, seed=4, context=lambda: (latents[:, places], places)
        )
        judge().begin_drags(streams)
        tracks, asked = streams.script.tracks, streams.script.asked
        assert torch.equal(asked.dragged, torch.zeros(6, dtype=torch.long))
        # latent frame 14 ends with pixel frame 56, the drag begins with the one after it
        assert not tracks.state[..., :57].any()
        assert tracks.state[:, 0, 57].all()
        apart = (tracks.points[:, 0, 57] - scene.centres[:, 0, 56]).norm(dim=1)[inside]
        assert float(apart.max()) < 0.02

    # a picture of the past is none of now
    joined = distill.reward.streams.unbroken
    early = lambda seen, new, places: joined(seen, new, places)[:, :-2]  # noqa: E731
    assert_needs(check, monkeypatch, distill.reward.streams, "unbroken", early)


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


def test_a_stage_asks_and_drags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = self_forcing_run(tmp_path)
    reward = RewardConfig(streams=1.0, drags=1.0, weight=1.0)
    stage = SelfForcingStage(replace(made, reward=reward), CPU)
    randomize(stage.student, 7)
    assert stage.judge is not None
    streams = stage.judge.streams
    assert streams is not None
    # what random weights show is no object of any colour: one stands in for what is read
    centre, seen = torch.full((2, 3, 2, 2), 0.5), torch.ones(2, 3, 2, dtype=torch.bool)
    there = lambda self, pictures, labels, others: distill.reward.streams.Places(centre, seen)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(distill.reward.streams, "judgeable", lambda labels: seen[:, :, 0])
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


def test_a_stage_adds_it_to_the_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = self_forcing_run(tmp_path)
    stage = SelfForcingStage(replace(made, reward=RewardConfig(streams=1.0)), CPU)
    student = next(step for step in range(9) if stage.target(step) == "student")
    batch = stage.batch(Tick(student, 0, 0, 1, 1, 0.5))
    assert batch.script.asked is not None
    assert not batch.first

    def loss(reward: float) -> float:
        stage.streams = None
        mine = torch.tensor(reward)
        with monkeypatch.context() as patched:
            patched.setattr(StreamReward, "loss", lambda *_: (mine, {"streams/reward/off": mine}))
            found, metrics = stage.loss(stage.student, batch)
        assert float(torch.as_tensor(metrics["streams/reward/off"])) == reward
        return found.item()

    assert loss(0.25) == pytest.approx(loss(0.0) + 0.25, abs=1e-5)
    # scripts that are not asked for anything are not judged
    plain = replace(batch, script=replace(batch.script, asked=None))
    stage.streams = None
    assert "streams/reward/off" not in stage.loss(stage.student, plain)[1]


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
