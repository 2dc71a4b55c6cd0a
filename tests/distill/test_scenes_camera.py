"""Camera moves of the procedural world: the field of ``streamgen.motion.tracks.camera``, told by tracks."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distill.scenes import MOTIONS, SIZES, SceneBatch, SceneConfig, SceneGenerator
from distill.scenes.backgrounds import Backgrounds
from distill.scenes.camera import (
    CAMERA_FRAMES,
    CAMERA_KINDS,
    CameraPlan,
    camera_path,
    flow,
    plan_camera,
    starting_jitter,
)
from distill.scenes.shapes import EXTENTS, WORLD_SIZE, DistanceTable
from distill.scenes.sprites import ZoomedSprites, build_sprites
from distill.scenes.vocabulary import SHAPES, SIZE_JITTER, SIZE_RADII
from streamgen.motion.tracks import VISIBLE, camera
from tests.tiny_models import assert_needs

FRAMES = 65
#: Every clip has a camera move and nothing else happens; textures stand still, so that places compare.
STILL = SceneConfig(
    change_probability=0, drag_probability=0, camera_probability=1, texture_period=1, texture_contrast=1.0
)


@pytest.fixture(scope="module")
def scenes() -> SceneBatch:
    return SceneGenerator(STILL).sample(64, FRAMES, seed=1)


def inside(points: Tensor) -> Tensor:
    return ((points >= 0) & (points <= 1)).all(-1)


def one_move(pan: tuple[float, float], zoom: float, rotate: float, frames: int) -> CameraPlan:
    """A move at even speed from frame 0 on."""
    return CameraPlan(
        kinds=torch.ones(1, 3, dtype=torch.bool),
        move=torch.tensor([[*pan, zoom, rotate]]),
        start=torch.zeros(1, dtype=torch.long),
        frames=torch.tensor([frames]),
        ease=torch.zeros(1),
    )


@pytest.mark.parametrize(
    ("pan", "zoom", "rotate"),
    [
        ((0.4, 0.0), 1.0, 0.0),
        ((0.0, -0.3), 1.0, 0.0),
        ((0.0, 0.0), 1.3, 0.0),
        ((0.0, 0.0), 0.8, 0.0),
        ((0.0, 0.0), 1.0, 40.0),
        ((-0.2, 0.3), 1.2, -25.0),
    ],
)
def test_the_field_is_that_of_a_camera_track_set(
    pan: tuple[float, float], zoom: float, rotate: float
) -> None:
    """Every track of ``camera()``, re-sown ones too, follows the world's field."""
    frames = 41
    tracks = camera(frames=frames, pan=pan, zoom=zoom, rotate=rotate)
    path = camera_path(one_move(pan, zoom, rotate, frames - 1), frames)
    specified = tracks.state == VISIBLE
    sown = specified.int().argmax(1)
    first = tracks.points[torch.arange(tracks.num_tracks), sown]
    ours = path.carried(first[None] * WORLD_SIZE, sown[None])[0] / WORLD_SIZE
    assert specified.sum() > 16 * 20
    torch.testing.assert_close(ours[specified], tracks.points[specified], rtol=0, atol=1e-4)


def test_objects_follow_the_same_field_away_from_the_seam() -> None:
    path = camera_path(one_move((0.2, 0.1), 1.2, 30.0, 40), 41)
    generator = torch.Generator().manual_seed(0)
    start = 16 + 32 * torch.rand(1, 20, 2, generator=generator)
    place, kept = start, torch.ones(1, 20, dtype=torch.bool)
    expected = path.carried(start, torch.zeros(1, 20, dtype=torch.long))
    factor, offset = path.steps()
    for frame in range(40):
        place = place + flow(place, factor[:, frame], offset[:, frame])
        kept &= ((place > 4.5) & (place < 59.5)).all(-1)
    assert kept.sum() > 10
    torch.testing.assert_close(place[kept], expected[:, :, -1][kept], rtol=0, atol=1e-2)


def test_the_field_of_objects_has_no_jump_at_the_seam() -> None:
    """What is drawn at both edges goes one way; pans go on across."""
    path = camera_path(one_move((0.3, 0.0), 1.3, 40.0, 16), 17)
    factor, offset = (step[:, 0] for step in path.steps())
    line = torch.linspace(0, 63.9, 20)
    pan = torch.view_as_real(offset)[0]
    for low, high in (
        (torch.stack([torch.zeros(20), line], 1), torch.stack([torch.full((20,), 63.999), line], 1)),
        (torch.stack([line, torch.zeros(20)], 1), torch.stack([line, torch.full((20,), 63.999)], 1)),
    ):
        steps = [flow(side[None], factor, offset)[0] for side in (low, high)]
        torch.testing.assert_close(*steps, rtol=0, atol=1e-3)
    corner = flow(torch.zeros(1, 1, 2), factor, offset)[0, 0]
    torch.testing.assert_close(corner, pan)


def test_plans_stay_within_their_limits() -> None:
    batch = 20_000
    plan = plan_camera(81, batch, 0.2, torch.Generator().manual_seed(0))
    has = plan.kinds.any(1)
    assert abs(has.float().mean() - 0.2) < 0.01
    assert (plan.move[~has] == torch.tensor([0.0, 0.0, 1.0, 0.0])).all()
    assert plan.frames.min() == CAMERA_FRAMES[0]
    assert plan.frames.max() == CAMERA_FRAMES[1]
    assert plan.start.min() == 0
    pan, zoom, rotate = (plan.move[has & plan.kinds[:, index]] for index in range(len(CAMERA_KINDS)))
    assert 0.04 < pan[:, :2].norm(dim=1).min() < pan[:, :2].norm(dim=1).max() <= 0.7501
    assert 0.749 < zoom[:, 2].min() < 0.76
    assert 1.32 < zoom[:, 2].max() < 1.334
    assert 5 < rotate[:, 3].abs().min() < rotate[:, 3].abs().max() <= 45
    for kind in range(len(CAMERA_KINDS)):
        alone = plan.kinds[:, kind] & (plan.kinds.sum(1) == 1)
        assert alone.sum() > 0.1 * has.sum()
    assert (plan.kinds.sum(1) > 1).sum() > 0.15 * has.sum()
    jitter = starting_jitter(torch.randint(0, 3, (batch, 1)), plan, len(SIZE_JITTER))
    ratio = torch.tensor(SIZE_JITTER)[jitter] * camera_path(plan, 81).scale[:, [0, -1]]
    assert 0.86 <= ratio.min() <= ratio.max() <= 1.16
    assert not plan_camera(15, 100, 1.0, torch.Generator().manual_seed(0)).kinds.any()


def test_the_camera_moves_and_then_rests(scenes: SceneBatch) -> None:
    lengths = scenes.camera.sum(1)
    assert (lengths >= 8).all()
    assert (lengths <= CAMERA_FRAMES[1]).all()
    assert torch.equal(scenes.labels["camera"].any(1), scenes.camera.any(1))
    rests = ~scenes.camera[:, 1:]
    background = scenes.track_object < 0
    steps = scenes.points.diff(dim=2).norm(dim=-1)
    at_rest = rests[:, None] & background[..., None]
    assert steps[at_rest].max() < 1e-6
    moving = ~rests[:, None] & background[..., None]
    assert (steps[moving] > 1e-6).float().mean() > 0.97
    held = scenes.video[:, 1:] != scenes.video[:, :-1]
    changed = held.flatten(2).float().mean(2)
    assert changed[~rests].mean() > 5 * changed[rests].mean()


def test_what_stays_goes_with_the_camera_alone() -> None:
    scenes = SceneGenerator(replace(STILL, object_weights=(1.0,), size=32)).sample(160, FRAMES, 3)
    rows = torch.nonzero(scenes.labels["motion"][:, 0, 0] == MOTIONS.index("stays")).squeeze(1)
    assert len(rows) > 6
    own = scenes.points[rows][:, 0]
    steps = ((own.diff(dim=1) + 0.5) % 1 - 0.5).norm(dim=-1) * 64
    assert steps[~scenes.camera[rows, 1:]].max() < 1e-3
    assert steps[scenes.camera[rows, 1:]].mean() > 0.1


def test_sizes_stay_in_their_class(scenes: SceneBatch) -> None:
    """A zoom changes radii, but classes do not meet, so "medium" stays true."""
    size = scenes.labels["size"][:, 0]
    ratio = scenes.radii * 64 / torch.tensor(SIZE_RADII)[size.clamp(min=0)][..., None]
    ratio = ratio[size >= 0]
    assert ratio.min() < 0.95
    assert ratio.max() > 1.05
    for index in range(len(SIZES) - 1):
        assert SIZE_RADII[index] * ratio.max() < SIZE_RADII[index + 1] * ratio.min()
    zooms = scenes.labels["camera"][:, 1] > 0
    grown = (scenes.radii[:, 0, -1] / scenes.radii[:, 0, 0]).log()
    assert (grown[~zooms] == 0).all()
    assert (grown[zooms].sign() == scenes.camera_move[zooms, 2].log().sign()).all()


def test_zoomed_sprites_look_like_ready_made_ones() -> None:
    sub = 8
    device = torch.device("cpu")
    for size in range(len(SIZES)):
        sheet = build_sprites(size, 1.0, sub, device)
        zoomed = ZoomedSprites(size, 1.0, DistanceTable())
        border = (zoomed.crop - sheet.crop) // 2
        for shape in range(len(SHAPES)):
            rows = torch.arange(len(SIZE_JITTER)) * sub * sub + 3 * sub + 5
            part = torch.tensor([[5.0, 3.0]]).expand(len(SIZE_JITTER), -1) / sub
            keep, paint = zoomed.draw(torch.full((len(SIZE_JITTER),), shape), torch.tensor(SIZE_JITTER), part)
            for mine, ready in ((keep, sheet.keep), (paint, sheet.paint)):
                square = mine.view(-1, zoomed.crop, zoomed.crop)
                crop = square[:, border : border + sheet.crop, border : border + sheet.crop]
                expected = ready[shape * len(SIZE_JITTER) * sub * sub + rows].view(crop.shape)
                assert (crop - expected.short()).abs().max() <= 12
            assert (keep + paint <= 128).all()


def patches(scenes: SceneBatch, times: Tensor) -> Tensor:
    """Mean colours (B, N, K, 3) of about 3 x 3 pixels around points in frames ``times``."""
    video = scenes.video[:, times].movedim(-1, 2).float()
    smooth = functional.avg_pool2d(video.flatten(0, 1), 3, stride=1, padding=1)
    grid = scenes.points[:, :, times].movedim(2, 1).flatten(0, 1)[:, None] * 2 - 1
    found = functional.grid_sample(smooth, grid, align_corners=False)[:, :, 0]
    return found.unflatten(0, video.shape[:2]).permute(0, 3, 1, 2)


@pytest.mark.slow
def test_background_tracks_lie_on_the_pixels_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture around a point of the background is the same whenever it is seen."""

    def check() -> None:
        scenes = SceneGenerator(STILL).sample(64, FRAMES, seed=1)
        times = torch.arange(0, FRAMES, 4)
        colours = patches(scenes, times)
        points = scenes.points[:, :, times]
        apart = (points[:, :, None] - scenes.centres[:, None, :, times] + 0.5) % 1 - 0.5
        reach = scenes.radii[:, None, :, times] * max(EXTENTS) + 3 / 64
        clear = (apart.norm(dim=-1) > reach).all(2) & scenes.visible[:, :, times]
        clear &= ((points > 0.05) & (points < 0.95)).all(-1) & (scenes.track_object < 0)[..., None]
        pairs = clear[:, :, :, None] & clear[:, :, None, :]
        moved = (points[:, :, :, None] - points[:, :, None]).norm(dim=-1) > 0.1
        error = (colours[:, :, :, None] - colours[:, :, None]).abs().mean(-1)
        chosen = pairs & moved
        assert chosen.sum() > 2000
        shuffled = (colours[:, :, :, None] - colours.roll(3, 1)[:, :, None]).abs().mean(-1)[chosen]
        assert error[chosen].mean() < 0.35 * shuffled.mean()
        assert error[chosen].quantile(0.99) < 14

    def as_if_at_rest(
        self: Backgrounds, background: Tensor, texture: Tensor, time: Tensor, _: Tensor
    ) -> Tensor:
        return self._still(background, texture, time)

    assert_needs(check, monkeypatch, Backgrounds, "_moved", as_if_at_rest)


def test_tracks_cover_the_picture_while_the_camera_moves(scenes: SceneBatch) -> None:
    """As the lattice of ``camera()`` does: about one point per cell of a 4 x 4 grid, free, none pinned."""
    background = scenes.track_object < 0
    assert not scenes.pinned.any()
    assert (background.sum(1) == 16 - scenes.labels["count"]).all()
    present = inside(scenes.points) & background[..., None]
    counts = present.sum(1)[scenes.camera]
    assert counts.min() >= 4
    assert counts.float().mean() > 11
    quarter = (scenes.points * 2).long().clamp(0, 1)
    cell = quarter[..., 1] * 2 + quarter[..., 0]
    seen = torch.stack([(present & (cell == index)).any(1) for index in range(4)])
    assert seen.all(0)[scenes.camera].float().mean() > 0.9
    assert not scenes.visible[~inside(scenes.points)].any()
    assert scenes.points.min() >= -1
    assert scenes.points.max() <= 2


def test_a_dragged_object_is_held_in_the_picture() -> None:
    """Whatever the camera does meanwhile, the path leads through the same places of the picture."""
    config = replace(STILL, drag_probability=1.0, object_weights=(1.0,), size=32)
    moved = SceneGenerator(config).sample(64, 81, 2)
    alone = SceneGenerator(replace(config, camera_probability=0.0)).sample(64, 81, 2)
    start = alone.dragged[:, 0].int().argmax(1)
    camera_start = moved.camera.int().argmax(1)
    during = (moved.camera & moved.dragged[:, 0]).any(1)
    # without a zoom and where the drag comes first, both worlds agree until it ends
    same = during & (start <= camera_start) & (moved.labels["camera"][:, 1] == 0)
    assert same.sum() > 5
    for clip in torch.nonzero(same).squeeze(1).tolist():
        frames = torch.nonzero(alone.dragged[clip, 0]).squeeze(1)
        torch.testing.assert_close(moved.centres[clip, 0, frames], alone.centres[clip, 0, frames])
    assert math.isfinite(float(moved.centres.sum()))
