"""Motion in the procedural world: stationary, continuous, and told by tracks that lie where they say."""

import math

import pytest
import torch
from torch import Tensor

import distill.scenes.tracks
from distill.scenes import MOTIONS, SHAPES, SceneBatch, SceneConfig, SceneGenerator
from distill.scenes.dynamics import DIRECTIONS, NEVER, MotionPlan, Simulation, Trajectories
from distill.scenes.shapes import signed_distance
from distill.scenes.vocabulary import COLOUR_RGB
from tests.tiny_models import assert_needs

FRAMES = 49


def busy_batch() -> SceneBatch:
    """A batch in which much changes, much is dragged and much is hidden, with up to three objects."""
    config = SceneConfig(
        object_weights=(1, 1, 1), change_probability=0.7, drag_probability=0.7, camera_probability=0.4
    )
    return SceneGenerator(config).sample(96, FRAMES, seed=5)


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    return busy_batch()


def wrapped(apart: Tensor) -> Tensor:
    """Differences of normalised places on the torus."""
    return (apart + 0.5) % 1 - 0.5


def wrapped_step(positions: Tensor) -> Tensor:
    """Per-frame distance on the torus: (..., T, 2) -> (..., T - 1)."""
    return wrapped(positions.diff(dim=-2)).norm(dim=-1)


def used_slots(batch: SceneBatch) -> Tensor:
    return torch.arange(batch.centres.shape[1]) < batch.labels["count"][:, None]


def in_front(batch: SceneBatch) -> Tensor:
    """(B, N, O) bool: objects painted after the track's own."""
    later = torch.arange(batch.centres.shape[1]) > batch.track_object[..., None]
    return later & used_slots(batch)[:, None]


def distances(batch: SceneBatch) -> Tensor:
    """(B, N, O, T) pixels between tracks and object centres, on the torus."""
    return wrapped(batch.points[:, :, None] - batch.centres[:, None]).norm(dim=-1) * 64


def test_tracks_sit_on_pixels_of_their_object(batch: SceneBatch) -> None:
    clip, track, time = torch.meshgrid(*(torch.arange(n) for n in batch.visible.shape), indexing="ij")
    owner = batch.track_object[..., None].expand_as(time)
    segment = (time >= batch.segment_start[clip, 1]).long()
    fading = (time - batch.segment_start[clip, 1]).clamp(min=-1) // 4 == 0
    slot = owner.clamp(min=0)
    shape = batch.labels["shape"][clip, segment, slot]
    alone = ((distances(batch) > 26) | ~in_front(batch)[..., None]).all(2)
    checked = (owner >= 0) & ~fading & alone
    expected = torch.tensor(COLOUR_RGB).float()[batch.labels["colour"][clip, segment, slot]]
    x, y = (batch.points * 64).long().clamp(max=63).unbind(-1)
    found = batch.video[clip, time, y, x].float()
    # Shading darkens the colour by up to a fifth.
    error = (found - 0.9 * expected).abs().amax(-1)
    at_centre = (batch.points == batch.centres[clip, slot, time]).all(-1)
    solid = checked & at_centre & (shape != SHAPES.index("ring"))
    assert solid.sum() > 1000
    assert error[solid].max() < 32
    # Points inside may meet the dark outline of a thin ring, or a star's inner corner, but rarely.
    inside = checked & ~at_centre
    assert (error[inside] < 40).float().mean() > 0.9


def test_positions_are_continuous(batch: SceneBatch) -> None:
    steps = wrapped_step(batch.centres)[used_slots(batch)] * 64
    assert steps.max() < 6.5
    moving = wrapped_step(batch.points)[batch.track_object >= 0] * 64
    assert moving.max() < 6.5
    assert batch.dragged.any()
    assert batch.camera.any()
    assert (batch.segment_start[:, 1] < FRAMES).any()


def test_own_motion_goes_where_the_label_says() -> None:
    config = SceneConfig(
        size=32, object_weights=(1.0,), change_probability=0, drag_probability=0, camera_probability=0
    )
    batch = SceneGenerator(config).sample(96, FRAMES, 2)
    mean = wrapped(batch.centres[:, 0].diff(dim=1)).mean(1) * 64 * 16
    motion = batch.labels["motion"][:, 0, 0]
    assert set(DIRECTIONS) == {
        name for name in MOTIONS if name.split()[-1] in ("right", "left", "up", "down")
    }
    for name, direction in DIRECTIONS.items():
        word_x = {"right": 1, "left": -1}.get(name.split()[-1], 0)
        word_y = {"down": 1, "up": -1}.get(name.split()[0], 0)
        assert (math.copysign(1, direction[0]) == word_x) if word_x else direction[0] == 0
        assert (math.copysign(1, direction[1]) == word_y) if word_y else direction[1] == 0
        velocity = mean[motion == MOTIONS.index(name)]
        speed = velocity @ torch.tensor(direction)
        assert ((speed > 15) & (speed < 27)).all()
        torch.testing.assert_close(velocity, speed[:, None] * torch.tensor(direction), rtol=0, atol=0.01)
    assert mean[motion == MOTIONS.index("stays")].abs().max() == 0


def test_drags_move_against_the_own_motion() -> None:
    config = SceneConfig(
        size=32, object_weights=(1.0,), change_probability=0, drag_probability=1, camera_probability=0.5
    )
    batch = SceneGenerator(config).sample(64, 81, 4)
    dragged = batch.dragged[:, 0]
    assert dragged.any(1).all()
    lengths = dragged.sum(1)
    assert lengths.min() >= 16
    assert lengths.max() <= 48
    path = batch.centres[:, 0]
    for clip in range(64):
        frames = torch.nonzero(dragged[clip]).squeeze(1)
        travel = (path[clip, frames[-1]] - path[clip, frames[0] - 1]) * 64
        assert 5 < ((travel + 32) % 64 - 32).norm() < 46
        assert frames[-1] < 80


def covered_by_distance(batch: SceneBatch, margin: float) -> Tensor:
    """(B, N, T) bool: points more than ``margin`` radii inside the exact shape of an object in front."""
    segment = (torch.arange(FRAMES) >= batch.segment_start[:, 1:]).long()
    covered = torch.zeros_like(batch.visible)
    for slot in range(batch.centres.shape[1]):
        radii = batch.radii[:, None, slot].clamp(min=1e-6)
        away = wrapped(batch.points - batch.centres[:, None, slot]) / radii[..., None]
        shape = batch.labels["shape"][:, :, slot].gather(1, segment)[:, None]
        for index, name in enumerate(SHAPES):
            inside = signed_distance(name, away[..., 0], away[..., 1]) < -margin
            covered |= inside & (shape == index) & in_front(batch)[..., slot, None]
    return covered


@pytest.mark.slow
def test_visible_is_false_exactly_under_an_object_in_front(
    batch: SceneBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three objects, moving cameras and zoomed objects; at the edge of a shape either is right."""
    assert (batch.labels["count"] == 3).sum() > 20

    def check() -> None:
        scenes = busy_batch()
        inside = ((scenes.points >= 0) & (scenes.points <= 1)).all(-1)
        for owner in (-1, 0, 1):
            mine = (scenes.track_object == owner)[..., None] & inside
            surely = covered_by_distance(scenes, 0.02) & mine
            assert surely.any()
            assert not scenes.visible[surely].any()
        maybe = covered_by_distance(scenes, -0.02)
        assert scenes.visible[inside & ~maybe].all()
        assert not scenes.visible[~inside].any()
        last = scenes.track_object == (scenes.labels["count"] - 1)[:, None]
        assert scenes.visible[last].all()

    def nothing(points: Tensor, *_: object) -> Tensor:
        return torch.zeros(points.shape[:3], dtype=torch.bool)

    assert_needs(check, monkeypatch, distill.scenes.tracks, "_covered", nothing)


def long_run(motions: list[str], each: int, frames: int) -> Trajectories:
    """Motions that never change: all objects with the first one, then all with the next."""
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([MOTIONS.index(name) for name in motions]).repeat_interleave(each)
    never = torch.full((len(index), 1), NEVER)
    plan = MotionPlan(
        motion=index[:, None, None].expand(-1, 2, 1),
        change_frame=never[:, 0],
        margin=torch.linspace(8, 22, each).repeat(len(motions))[:, None],
        drag_start=never,
        drag_frames=torch.zeros_like(never),
    )
    return Simulation(plan, generator).run(frames)


def test_stationary_for_ever() -> None:
    """Per motion, places and speeds have the same statistics in a clip's first minute and in its third."""
    each, length = 32, 960
    path = long_run(list(MOTIONS), each, 3 * length).positions[:, 0].view(len(MOTIONS), each, -1, 2)
    assert path.min() >= 0
    assert path.max() <= 64
    margin = torch.linspace(8, 22, each)
    speed = wrapped_step(path / 64) * 64
    for index, name in enumerate(MOTIONS):
        early, late = path[index, :, :length], path[index, :, -length:]
        for axis in range(2):
            histogram = [
                torch.histc(part[..., axis], 8, 0, 64) / part[..., 0].numel() for part in (early, late)
            ]
            assert (histogram[0] - histogram[1]).abs().max() < 0.03, (name, axis)
        rates = [speed[index, :, part].mean(1) for part in (slice(length), slice(-length, None))]
        torch.testing.assert_close(*rates, rtol=0.03, atol=1e-4)
        if name in ("stays", "circles", "bounces"):
            inside = torch.minimum(path[index], 64 - path[index]).amin((1, 2))
            assert (inside >= margin - 1.3).all(), name
