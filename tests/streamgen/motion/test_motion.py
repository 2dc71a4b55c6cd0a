"""TrackSets, their constructors, and motion files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamgen.errors import InputError
from streamgen.motion.file import load_motion, motion_to_json
from streamgen.motion.tracks import (
    OCCLUDED,
    UNSPECIFIED,
    VISIBLE,
    TrackSet,
    camera,
    drag,
    frame_at,
    merge,
    path,
    pins,
)

NAN = math.nan


def visible(tracks: TrackSet) -> torch.Tensor:
    return tracks.state == VISIBLE


def assert_same(first: TrackSet, second: TrackSet) -> None:
    for name in ("points", "state", "pinned", "ids"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("value", [NAN, math.inf, -0.01, 1.01])
def test_a_specified_point_must_be_in_the_frame(value: float) -> None:
    points = torch.full((2, 3, 2), 0.5)
    points[1, 2, 0] = value
    with pytest.raises(ValueError, match=r"track 1, frame 2: x must be a number in \[0, 1\]"):
        TrackSet.from_points(points)


def test_unspecified_points_are_not_looked_at_and_read_as_zero() -> None:
    points = torch.full((1, 2, 2), 0.5)
    points[0, 1] = NAN
    tracks = TrackSet.from_points(points, torch.tensor([[VISIBLE, UNSPECIFIED]]))
    assert tracks.points.tolist() == [[[0.5, 0.5], [0.0, 0.0]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(2, 3)}, r"points must be \(tracks, frames, 2\)"),
        ({"points": torch.zeros(2, 3, 3)}, r"points must be \(tracks, frames, 2\)"),
        ({"state": torch.ones(2, 4)}, r"state must have shape \(2, 3\)"),
        ({"state": torch.full((2, 3), 3)}, "state must be 0"),
        ({"pinned": torch.zeros(3, dtype=torch.bool)}, r"pinned must have shape \(2,\)"),
        ({"ids": torch.tensor([4, 4])}, "ids must be distinct"),
        ({"ids": torch.tensor([-1, 4])}, "ids must be distinct and not negative"),
        ({"ids": torch.tensor([0.5, 1.5])}, "ids must hold torch.int64"),
    ],
)
def test_wrong_shapes_states_and_ids_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    parts = {
        "points": torch.full((2, 3, 2), 0.5),
        "state": torch.ones(2, 3, dtype=torch.int8),
        "pinned": torch.zeros(2, dtype=torch.bool),
        "ids": torch.tensor([3, 5]),
    }
    with pytest.raises(ValueError, match=message):
        TrackSet(**(parts | change))


def test_empty_is_the_null_motion() -> None:
    tracks = TrackSet.empty(9)
    assert (tracks.num_tracks, tracks.num_frames, tracks.is_empty) == (0, 9, True)
    assert tracks.slice(3, 20).num_frames == 17
    assert merge([tracks, TrackSet.empty(2)]).num_frames == 9


def test_slice_keeps_the_tracks_and_leaves_frames_outside_unspecified() -> None:
    tracks = drag((0.1, 0.2), (0.9, 0.2), frames=5)
    cut = tracks.slice(-2, 7)
    assert cut.num_frames == 9
    assert cut.state[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert torch.equal(cut.points[:, 2:7], tracks.points)
    assert torch.equal(tracks.slice(1, 3).points, tracks.points[:, 1:3])
    assert tracks.slice(10, 14).is_empty
    with pytest.raises(ValueError, match="start <= stop"):
        tracks.slice(3, 2)


def test_drag_goes_straight_and_holds() -> None:
    tracks = drag((0.0, 1.0), (1.0, 0.0), frames=7, hold=2)
    assert tracks.points[0, :, 0].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert torch.allclose(tracks.points.sum(-1), torch.ones(1, 7))
    smooth = drag((0.0, 0.5), (1.0, 0.5), frames=5, ease="smooth").points[0, :, 0]
    assert smooth.tolist() == pytest.approx([0, 0.15625, 0.5, 0.84375, 1])
    with pytest.raises(ValueError, match="frames must be at least hold"):
        drag((0, 0), (1, 1), frames=3, hold=2)


def test_path_passes_its_knots_at_their_times() -> None:
    tracks = path([(0.5, 0.0, 0.0), (1.0, 0.4, 0.8), (2.0, 1.0, 0.8)], fps=4)
    assert tracks.state[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert tracks.points[0, 2:5].flatten().tolist() == pytest.approx([0, 0, 0.2, 0.4, 0.4, 0.8])
    assert tracks.points[0, -1].tolist() == pytest.approx([1.0, 0.8])
    with pytest.raises(ValueError, match="times must be finite, >= 0 and increase"):
        path([(1, 0, 0), (1, 1, 1)], fps=4)


def test_pins_stay() -> None:
    tracks = pins([(0.25, 0.5), (0.75, 0.5)], frames=6)
    assert tracks.pinned.tolist() == [True, True]
    assert torch.equal(tracks.points, tracks.points[:, :1].expand(-1, 6, -1))


def test_camera_pan_moves_the_picture_the_other_way_at_even_speed() -> None:
    tracks = camera(frames=33, pan=(0.5, 0.0))
    both = visible(tracks)[:, 1:] & visible(tracks)[:, :-1]
    steps = tracks.points.diff(dim=1)[both]
    assert torch.allclose(steps, torch.tensor([-0.5 / 32, 0.0]).expand_as(steps), atol=1e-6)


@pytest.mark.parametrize("move", [{"pan": (2.0, -1.0)}, {"zoom": 4.0}, {"zoom": 0.25}, {"rotate": 180.0}])
def test_camera_fields_cover_the_frame_all_the_time(move: dict[str, Any]) -> None:
    tracks = camera(frames=49, **move)
    assert int(visible(tracks).sum(0).min()) >= 4
    centroid = (tracks.points * visible(tracks)[..., None]).sum(0) / visible(tracks).sum(0)[:, None]
    assert bool(((centroid - 0.5).abs() < 0.3).all())


def test_camera_zoom_and_rotation_are_about_the_centre() -> None:
    corner = camera(frames=9, zoom=0.5, grid=2).points[0]
    assert corner[0].tolist() == pytest.approx([0.25, 0.25])
    assert corner[8].tolist() == pytest.approx([0.375, 0.375])
    # The camera rolls clockwise, so what is right of the centre goes up; on a wide frame circles stay round.
    turned = camera(frames=2, rotate=10.0, grid=1, aspect=2.0).points
    assert torch.allclose(turned, torch.full_like(turned, 0.5))
    wide = camera(frames=2, rotate=5.0, grid=2, aspect=2.0).points[3] - 0.5
    lengths = (wide * torch.tensor([2.0, 1.0])).norm(dim=-1)
    assert wide[1, 1] < wide[0, 1]
    assert float(lengths[0]) == pytest.approx(float(lengths[1]), abs=1e-6)


def test_merge_pads_and_keeps_ids_apart() -> None:
    first = TrackSet.from_points(torch.full((2, 3, 2), 0.1), ids=torch.tensor([7, 9]))
    second = TrackSet.from_points(torch.full((2, 5, 2), 0.2), ids=torch.tensor([9, 1]), pinned=True)
    merged = merge([first, second])
    assert merged.ids.tolist() == [7, 9, 10, 1]
    assert merged.state.tolist()[0] == [1, 1, 1, 0, 0]
    assert merged.pinned.tolist() == [False, False, True, True]


def test_frame_at_rounds_to_the_nearest_frame() -> None:
    assert [frame_at(seconds, 16) for seconds in (0, 0.03, 0.032, 1 / 16, 2.5)] == [0, 0, 1, 1, 40]


def test_a_motion_file_of_every_kind(tmp_path: Path) -> None:
    content = {
        "drags": [{"from": [0.1, 0.5], "to": [0.9, 0.5], "start": 1, "seconds": 1}],
        "paths": [{"points": [[0, 0.2, 0.2], [0.5, 0.4, 0.2]]}],
        "tracks": [{"points": [[0.1, 0.1], None, [0.3, 0.1]], "start": 0.25, "id": 40}],
        "pins": [[0.5, 0.9]],
        "camera": {"pan": [0.1, 0], "seconds": 1, "grid": 2},
    }
    file = tmp_path / "motion.json"
    file.write_text(json.dumps(content))
    tracks = load_motion(file, fps=8)
    assert tracks.num_tracks == 1 + 1 + 1 + 1 + 4
    assert tracks.num_frames == 17
    assert tracks.ids[0] == 40
    assert tracks.state[0].tolist() == [0, 0, 1, 0, 1] + [0] * 12
    assert tracks.state[1].tolist() == [0] * 8 + [1] * 9
    assert tracks.points[1, 8].tolist() == pytest.approx([0.1, 0.5])
    assert tracks.points[1, 16].tolist() == pytest.approx([0.9, 0.5])
    assert tracks.pinned.tolist() == [False] * 7 + [True]
    assert visible(tracks)[7].all()


def test_json_gives_the_same_tracks_back() -> None:
    state = torch.tensor([[1, 2, 0], [1, 1, 1]])
    points = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0))
    tracks = TrackSet.from_points(points, state, torch.tensor([True, False]), torch.tensor([12, 3]))
    assert_same(load_motion(json.loads(json.dumps(motion_to_json(tracks))), fps=16), tracks)


def test_pins_take_the_length_of_the_stream() -> None:
    assert load_motion({"pins": [[0.5, 0.5]]}, fps=16, frames=33).num_frames == 33
    with pytest.raises(InputError, match="pins: have no length of their own"):
        load_motion({"pins": [[0.5, 0.5]]}, fps=16)


def point_row(*points: Any, **more: Any) -> dict[str, Any]:
    return {"tracks": [{"points": list(points), **more}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "empty: no"),
        ({"tracks": []}, "empty: no"),
        (point_row(None, None), "empty: no point is given"),
        (point_row(), r"tracks\[0\]: points: expected a list"),
        (point_row([NAN, 0.5]), r"tracks\[0\]: points\[0\]: expected finite numbers"),
        (
            point_row([0.5, 0.5], [0.5, 1.5]),
            r"tracks\[0\]: .*frame 1: y must be a number in \[0, 1\], found 1.5",
        ),
        (point_row([0.5]), r"points\[0\]: expected 2 numbers"),
        (point_row(["a", 0.5]), r"points\[0\]: expected finite numbers"),
        (point_row([0.5, 0.5]) | {"frames": 2}, "expected 2 points .* found 1"),
        (point_row([0.5, 0.5], start=1) | {"frames": 20}, "expected 4 points .* found 1"),
        (point_row([0.5, 0.5]) | {"frames": 0}, "frames: expected a whole number above 0"),
        (point_row([0.5, 0.5], start=-1), "start: expected seconds from 0"),
        (point_row([0.5, 0.5], start=1e6), "start: expected seconds from 0 to 86400"),
        (point_row([0.5, 0.5], visible=[1]), "visible: expected 1 times true or false"),
        (point_row([0.5, 0.5], pined=True), "unknown key 'pined' .did you mean 'pinned'"),
        ({"drag": []}, "unknown key 'drag' .did you mean 'drags'"),
        ({"drags": {}}, "drags: expected a list"),
        ({"drags": [[0, 0]]}, r"drags\[0\]: expected an object"),
        ({"drags": [{"from": [0, 0], "to": [1, 1]}]}, r"drags\[0\]: seconds: missing"),
        ({"drags": [{"from": [0, 0], "to": [2, 1], "seconds": 1}]}, r"drags\[0\]: .*x must be a number"),
        ({"paths": [{"points": [[0, 0.5, 0.5]]}]}, r"paths\[0\]: path: expected at least two"),
        ({"paths": [{"points": [[0, 0, 0], [1e9, 1, 1]]}]}, r"paths\[0\]: points: a time is beyond"),
        ({"camera": {"seconds": 1, "zoom": 0}}, "camera: expected .* zoom in"),
        ({"tracks": [{"points": [[0, 0]], "start": 80000}] * 20}, "too large: 20 tracks"),
        ({"camera": {"seconds": 60, "pan": [1000, 0]}}, "camera: too fast"),
        ({"camera": {"seconds": 80000, "grid": 64}}, "camera: too long"),
    ],
)
def test_bad_motion_is_one_clear_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_motion(content, fps=16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "not valid JSON .line 1"),
        ("a.json", b"[1]", "expected an object"),
        ("a.json", b"\xff\xfe\x00", "not a JSON file"),
        ("a.json", b'{"a":' * 200_000, "nested too deeply"),
        ("a.npz", b"PK\x03\x04 cut", "not a NumPy file"),
        ("a.npy", b"", "not a NumPy file"),
    ],
)
def test_damaged_motion_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_motion(file, fps=16)
    assert str(caught.value).startswith(str(file))
    with pytest.raises(InputError, match="no such file"):
        load_motion(tmp_path / f"missing-{name}", fps=16)


def test_numpy_motion(tmp_path: Path) -> None:
    points = np.full((2, 4, 2), 0.25)
    points[1, 2] = NAN
    seen = np.ones((2, 4), bool)
    seen[1, 2:] = False
    file = tmp_path / "tracks.npz"
    np.savez(file, points=points, visible=seen, pinned=np.array([True, False]))
    tracks = load_motion(file, fps=16)
    assert tracks.state.tolist() == [[VISIBLE] * 4, [VISIBLE, VISIBLE, UNSPECIFIED, OCCLUDED]]
    assert tracks.pinned.tolist() == [True, False]
    plain = tmp_path / "tracks.npy"
    np.save(plain, points[:1])
    assert load_motion(plain, fps=16).num_tracks == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.full((1, 3, 2), NAN)}, "frame 0: x must be a number"),
        ({"points": np.full((1, 3, 2), 2.0)}, "found 2"),
        ({"points": np.zeros((0, 3, 2))}, "empty: no tracks"),
        ({"points": np.zeros((3, 2))}, "expected shape"),
        ({"points": np.zeros((1, 3, 2)), "visible": np.ones((1, 2))}, r"visible: expected shape \(1, 3\)"),
        ({"points": np.array([[["a", "b"]]])}, "expected numbers"),
        ({"points": np.array([None])}, "not a NumPy file of plain arrays"),
        ({"point": np.zeros((1, 3, 2))}, "did you mean 'points'"),
    ],
)
def test_bad_numpy_motion_is_one_clear_line(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    file = tmp_path / "tracks.npz"
    np.savez(file, allow_pickle=True, **arrays)
    with pytest.raises(InputError, match=message):
        load_motion(file, fps=16)
