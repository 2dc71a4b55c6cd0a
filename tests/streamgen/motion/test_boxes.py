"""Boxes and grids: many tracks from a few numbers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import streamgen.motion.file
from streamgen.errors import InputError
from streamgen.motion.boxes import Box, grid, held_grid, layered, patch
from streamgen.motion.file import load_motion
from streamgen.motion.tracks import OCCLUDED, UNSPECIFIED, VISIBLE, TrackSet
from tests.tiny_models import assert_needs

FPS = 16.0
HERE, THERE = (0.1, 0.1, 0.4, 0.4), (0.4, 0.3, 1.0, 0.9)
BALL: dict[str, Any] = {"from": list(HERE), "to": list(THERE), "seconds": 1}


def spread(tracks: TrackSet, frame: int) -> tuple[list[float], list[float]]:
    """Middle and widths of the specified points of a frame."""
    points = tracks.points[:, frame][tracks.state[:, frame] != UNSPECIFIED]
    return points.mean(0).tolist(), (points.amax(0) - points.amin(0)).tolist()


def test_what_is_in_a_box_goes_where_it_goes_and_grows_as_it_grows() -> None:
    tracks = Box.to(HERE, THERE, 1.0).tracks(FPS)
    assert (tracks.num_tracks, tracks.num_frames) == (9, 17)
    assert bool((tracks.state == VISIBLE).all())
    middle, sides = spread(tracks, 0)
    assert middle == pytest.approx([0.25, 0.25])
    assert sides == pytest.approx([0.2, 0.2])
    middle, sides = spread(tracks, 16)
    assert middle == pytest.approx([0.7, 0.6])
    assert sides == pytest.approx([0.4, 0.4])
    middle, _ = spread(tracks, 8)
    assert middle == pytest.approx([0.475, 0.425])


def test_spacing_is_the_same_across_and_down_and_a_side_has_two_at_least() -> None:
    wide = Box.to((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), 1.0)
    assert wide.tracks(FPS, 0.1, aspect=1.0).num_tracks == 5 * 5
    assert wide.tracks(FPS, 0.1, aspect=2.5).num_tracks == 5 * 2
    assert wide.tracks(FPS, 0.001).num_tracks == 32 * 32
    small = Box.to((0.4, 0.4, 0.43, 0.43), (0.2, 0.2, 0.8, 0.8), 1.0)
    assert small.tracks(FPS).num_tracks == 4, "or nobody could tell that it grows"


def test_a_box_may_leave_the_frame_and_is_silent_where_it_has() -> None:
    tracks = Box.to((0.4, 0.4, 0.6, 0.6), (1.2, 0.4, 1.4, 0.6), 1.0).tracks(FPS)
    assert bool((tracks.state[:, 0] == VISIBLE).all())
    assert bool((tracks.state[:, 16] == UNSPECIFIED).all())


def test_a_path_of_boxes_begins_with_its_first_one() -> None:
    rows = [[0.5, 0.1, 0.1, 0.3, 0.3], [1.0, 0.5, 0.1, 0.7, 0.3], [2.0, 0.5, 0.5, 0.7, 0.7]]
    tracks = load_motion({"boxes": [{"path": rows}]}, FPS)
    assert tracks.num_frames == 33
    assert bool((tracks.state[:, :8] == UNSPECIFIED).all())
    assert spread(tracks, 8)[0] == pytest.approx([0.2, 0.2])
    assert spread(tracks, 24)[0] == pytest.approx([0.6, 0.4])


def test_what_a_box_in_front_covers_is_occluded(monkeypatch: pytest.MonkeyPatch) -> None:
    crossing = {
        "boxes": [
            {"from": [0.0, 0.4, 0.2, 0.6], "to": [0.8, 0.4, 1.0, 0.6], "seconds": 1},
            {"from": [0.45, 0.0, 0.6, 0.2], "to": [0.45, 0.8, 0.6, 1.0], "seconds": 1},
        ]
    }

    def check() -> None:
        state = load_motion(crossing, FPS).state
        assert bool((state[:4] == OCCLUDED).any()), "as they cross"
        assert bool((state[4:] == VISIBLE).all()), "the later one is in front"
        assert bool((state[:4, [0, 16]] == VISIBLE).all()), "and not where they do not"

    unlayered = lambda boxes, tracks, fps: list(tracks)  # noqa: E731
    assert_needs(check, monkeypatch, streamgen.motion.file, "layered", unlayered)


def test_two_boxes_of_one_place_are_refused_by_name() -> None:
    here, there = (0.1, 0.1, 0.4, 0.4), (0.6, 0.6, 0.9, 0.9)
    boxes = [Box.to(here, there, 1.0, "ball"), Box.to((0.1, 0.1, 0.41, 0.4), here, 1.0)]
    with pytest.raises(ValueError, match=r"ball and box 2 are boxes of the same place at 0 s"):
        layered(boxes, [box.tracks(FPS) for box in boxes], FPS)
    apart = [boxes[0], Box.to((0.2, 0.2, 0.3, 0.3), there, 1.0)]
    assert layered(apart, [box.tracks(FPS) for box in apart], FPS), "a small thing on a large one"


def test_a_grid_goes_along_its_path_as_one() -> None:
    tracks = grid([(0, 0.3, 0.3), (1, 0.6, 0.5)], FPS, (0.2, 0.1), 0.1)
    assert (tracks.num_tracks, tracks.num_frames) == (6, 17)
    assert not tracks.pinned.any()
    assert spread(tracks, 0)[1] == pytest.approx([0.2, 0.1])
    step = tracks.points[:, 16] - tracks.points[:, 0]
    assert torch.allclose(step, torch.tensor([0.3, 0.2]).expand_as(step), atol=1e-6)
    assert grid([(0, 0.3, 0.3), (1, 0.6, 0.5)], FPS).num_tracks == 1
    assert len(patch((0.4, 0.4), 0.1, aspect=2.0)) == 5 * 3


def test_a_held_grid_is_pinned_for_as_long_as_the_rest() -> None:
    motion = {"grids": [{"at": [0.5, 0.5], "size": [0.2, 0.2]}], "boxes": [BALL]}
    tracks = load_motion(motion, FPS)
    assert (tracks.num_tracks, tracks.num_frames) == (9 + 9, 17)
    assert int(tracks.pinned.sum()) == 9
    held = tracks.points[tracks.pinned]
    assert torch.equal(held[:, 0], held[:, 16])
    assert held_grid((0.0, 0.5), 4, (0.2, 0.0), 0.1).state[:, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        ({"boxes": [BALL | {"from": [0.2, 0.2, 0.2, 0.4]}]}, "boxes[0]: box at 0 s: has no size, expected"),
        ({"boxes": [BALL | {"to": [0.2, 0.2, 0.21, 0.4]}]}, "box at 1 s: has no size, expected 0.02"),
        ({"boxes": [BALL | {"from": [0.6, 0.1, 0.4, 0.4]}]}, "edges cross, left 0.6 must be below right 0.4"),
        ({"boxes": [BALL | {"from": [0.1, 0.5, 0.4, 0.4]}]}, "edges cross, top 0.5 must be below bottom 0.4"),
        ({"boxes": [BALL | {"from": [3, 0, 4, 1]}]}, "left must be within 2 frames, found 3"),
        (
            {"boxes": [{"from": [1.1, 0, 1.3, 0.2], "to": [1.5, 0, 1.7, 0.2], "seconds": 1}]},
            "lies outside of the frame all the time",
        ),
        ({"boxes": [BALL | {"from": [0, 0, 1]}]}, "from: expected 4 numbers"),
        ({"boxes": [BALL | {"path": []}]}, "expected either path or from"),
        ({"boxes": [{"path": []}]}, "path: expected a list of [seconds, left, top, right, bottom]"),
        ({"boxes": [{"path": [[0, 0, 0, 1, 1]], "hold": 1}]}, "hold: a path has times of its own"),
        ({"boxes": [{"path": [[1, 0, 0, 1, 1], [1, 0, 0, 1, 1]]}]}, "times must be finite, >= 0 and inc"),
        ({"boxes": [{"from": [0, 0, 1, 1]}]}, "seconds: missing"),
        ({"boxes": [BALL | {"name": 3}]}, "name: expected text"),
        ({"boxes": [BALL | {"spacing": 0}]}, "spacing must be above 0, found 0"),
        ({"boxes": [BALL, BALL]}, "boxes: box 1 and box 2 are boxes of the same place at 0 s"),
        ({"boxes": [BALL | {"seconds": 80000, "spacing": 0.001}]}, "too large"),
        ({"boxes": [BALL | {"colour": "red"}]}, "unknown key 'colour'"),
        ({"grids": [{"at": [0.5, 0.5], "size": [0.2, 0.2]}]}, 'has no length of its own, add "frames"'),
        ({"grids": [{"size": [0.2, 0.2]}]}, "expected points, a list of [seconds, x, y], or at: [x, y]"),
        ({"grids": [{"at": [1.5, 0.5], "size": [0, 0]}], "frames": 8}, "lies outside of the frame"),
        ({"grids": [{"at": [0.5, 0.5], "size": [1, 1], "spacing": 0.01}], "frames": 8}, "101 tracks a side"),
        ({"grids": [{"at": [0.5, 0.5], "size": [9, 1]}], "frames": 8}, "must be (width, height) in 0..2"),
        ({"grids": [{"points": [[0, 0.5, 0.5]], "size": [0, 0], "pinned": True}]}, "unknown key 'pinned'"),
        ({"grids": [{"points": [[0, 0.5, 0.5], [80000, 1, 1]], "size": [1, 1]}]}, "too large"),
        ({"grids": [{"points": [[0, 9, 9]], "size": [0, 0]}]}, "far outside of the frame"),
    ],
)  # fmt: skip
def test_boxes_and_grids_that_cannot_be(motion: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "motion.json"
    file.write_text(json.dumps(motion))
    with pytest.raises(InputError) as caught:
        load_motion(file, FPS)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert message in str(caught.value)


def test_python_says_the_same_of_what_a_file_cannot_hold() -> None:
    for knots in (torch.zeros(0, 5), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match="expected \\(seconds, left"):
            Box(knots)
    with pytest.raises(ValueError, match="left must be within"):
        Box.to((math.nan, 0, 1, 1), (0, 0, 1, 1), 1.0)
    with pytest.raises(ValueError, match="expected \\(seconds, x, y\\)"):
        grid([(0, 0)], FPS)
    with pytest.raises(ValueError, match="frames must be at least 1"):
        held_grid((0.5, 0.5), 0, (0, 0), 0.1)
