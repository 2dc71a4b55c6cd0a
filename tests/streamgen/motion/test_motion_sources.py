"""Motion out of arrays of other tools, out of clips, and cut by masks; and how it is drawn."""

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from streamgen.errors import InputError
from streamgen.motion.arrays import resampled, save_tracks
from streamgen.motion.file import load_motion
from streamgen.motion.preview import blank, draw_frames, draw_picture
from streamgen.motion.sources import files_of, with_folder
from streamgen.motion.tracks import OCCLUDED, UNSPECIFIED, VISIBLE, TrackSet, drag, merge, pins
from streamgen.video.write import VideoFileSink
from tests.command_line import call

FPS = 16.0
SIZE = (832, 480)


def pixel_tracks(count: int = 3, frames: int = 81) -> tuple[np.ndarray, np.ndarray]:
    """(T, N, 2) whole pixels inside the frame, and what is visible, (T, N)."""
    chance = np.random.default_rng(0)
    points = chance.integers(0, SIZE, (frames, count, 2)).astype(np.float32)
    return points, chance.random((frames, count)) > 0.2


def write_json(tmp_path: Path, content: Any) -> Path:
    (tmp_path / "motion.json").write_text(json.dumps(content))
    return tmp_path / "motion.json"


@pytest.mark.parametrize("batch", [True, False])
def test_wan_move_tracks(tmp_path: Path, batch: bool) -> None:
    points, visible = pixel_tracks()
    np.save(tmp_path / "tracks.npy", points[None] if batch else points)
    np.save(tmp_path / "visible.npy", visible[None] if batch else visible)
    arrays = {"file": "tracks.npy", "visible": "visible.npy", "size": SIZE, "layout": "wan-move"}
    tracks = load_motion(write_json(tmp_path, {"arrays": arrays}), FPS)
    assert (tracks.num_tracks, tracks.num_frames) == (3, 81)
    expected = (points.swapaxes(0, 1) + 0.5) / SIZE
    seen = tracks.state == VISIBLE
    assert torch.equal(seen, torch.from_numpy(visible.T))
    np.testing.assert_allclose(tracks.points[seen], expected[seen], atol=1e-6)
    assert (tracks.state[~seen] == OCCLUDED).all()


def test_wan_move_is_told_by_its_shape_and_may_name_its_size(tmp_path: Path) -> None:
    points, visible = pixel_tracks()
    np.savez(tmp_path / "a.npz", tracks=points[None], visibility=visible[None], size=SIZE)
    assert load_motion(tmp_path / "a.npz", FPS).num_tracks == 3
    np.save(tmp_path / "a.npy", points[None])
    with pytest.raises(InputError, match=r"a\.npy: size: pixel coordinates need the size"):
        load_motion(tmp_path / "a.npy", FPS)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("suffix", ["npz", "pth", "npy"])
def test_ati_tracks(tmp_path: Path, suffix: str, turned: bool) -> None:
    """121 frames at 24 a second, coordinates and visibility times eight; shorter tracks are filled up."""
    points, visible = pixel_tracks(frames=121)
    rows = np.concatenate([points, visible[..., None]], axis=-1).swapaxes(0, 1)[:, :, None] * 8
    rows[2, 60:] = 0
    rows = rows.swapaxes(0, 1) if turned else rows
    if suffix == "npy":
        np.save(tmp_path / "a.npy", rows)
    else:
        np.savez(tmp_path / "a.npz", array=rows)
    if suffix == "pth":
        torch.save((tmp_path / "a.npz").read_bytes(), tmp_path / "a.pth")
    tracks = load_motion(write_json(tmp_path, {"arrays": {"file": f"a.{suffix}", "size": SIZE}}), FPS)
    assert (tracks.num_tracks, tracks.num_frames) == (3, 81)
    # every second frame of 16 a second is a third one of 24
    at = torch.from_numpy(points.swapaxes(0, 1)[:2, ::3] / SIZE).float()
    seen = torch.from_numpy(visible.T[:2, ::3])
    assert torch.allclose(tracks.points[:2, ::2][seen], at[seen], atol=1e-6)
    assert (tracks.state[2, 41:] == UNSPECIFIED).all()


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Evil(), tmp_path / "a.pth")
    with pytest.raises(InputError, match="not a NumPy file of plain arrays"):
        load_motion(tmp_path / "a.pth", FPS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"file": "none.npy"}, "arrays: none.npy: no such file"),
        ({"file": 3}, "arrays: file: expected a file name"),
        ({"file": "a.npy", "layout": "tapir"}, "layout: expected one of tracks, wan-move, ati"),
        ({"file": "a.npy", "layout": ["ati"]}, "layout: expected one of"),
        ({"file": "a.npy", "size": [0, 5]}, "size: expected width and height above 0"),
        ({"file": "a.npy", "size": SIZE, "fps": -1}, "fps: expected above 0"),
        ({"file": "a.npy", "size": SIZE, "fps": 1e-9}, "fps: expected above 0|too large"),
        ({"file": "a.npy", "size": SIZE, "visible": "a.npy"}, "visible: expected shape"),
        ({"file": "a.npy", "sise": SIZE}, "did you mean 'size'"),
        ({"file": "odd.npy"}, "points: expected shape .*found .5, 6, 7."),
        ({"file": "text.npy"}, "not a NumPy file"),
    ],
)
def test_bad_arrays(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    np.save(tmp_path / "a.npy", pixel_tracks()[0][None])
    np.save(tmp_path / "odd.npy", np.zeros((5, 6, 7)))
    (tmp_path / "text.npy").write_text("no")
    with pytest.raises(InputError, match=message) as caught:
        load_motion(write_json(tmp_path, {"arrays": content}), FPS)
    assert "\n" not in str(caught.value)


def test_resampling_keeps_times() -> None:
    tracks = drag((0.0, 0.5), (1.0, 0.5), 25)
    slower = resampled(tracks, 24, 16)
    assert slower.num_frames == 17
    assert torch.allclose(slower.points[0, :, 0], torch.arange(17) / 16, atol=1e-6)
    gap = TrackSet.from_points(tracks.points, torch.tensor([[1] * 12 + [0] * 13]))
    assert (resampled(gap, 24, 16).state[0] == torch.tensor([1] * 8 + [0] * 9)).all()
    assert resampled(tracks, 16, 16) is tracks


def test_saved_tracks_come_back(tmp_path: Path) -> None:
    tracks = merge([drag((0.1, 0.2), (0.9, 0.8), 9).slice(-3, 12), pins([(0.5, 0.5)], 7)])
    save_tracks(tracks, tmp_path / "a.npz")
    back = load_motion(tmp_path / "a.npz", FPS)
    for name in ("points", "pinned", "ids"):
        assert torch.equal(getattr(back, name), getattr(tracks, name)), name
    assert torch.equal(back.state, tracks.state)


def test_masks_leave_motion_unspecified(tmp_path: Path) -> None:
    drags = [{"from": [0.0, 0.5], "to": [1.0, 0.5], "seconds": 1}]
    box = {"box": [0.5, 0.0, 1.0, 1.0]}
    right = load_motion(write_json(tmp_path, {"drags": drags, "masks": [box]}), FPS)
    assert right.state[0].tolist() == [1] * 8 + [0] * 9
    late = load_motion(write_json(tmp_path, {"drags": drags, "masks": [box | {"start": 0.75}]}), FPS)
    assert late.state[0].tolist() == [1] * 12 + [0] * 5
    short = {"start": 0.5, "seconds": 0.25}
    brief = load_motion(write_json(tmp_path, {"drags": drags, "masks": [box | short]}), FPS)
    assert brief.state[0].tolist() == [1] * 8 + [0] * 4 + [1] * 5
    picture = np.zeros((4, 8), np.uint8)
    picture[:, 4:] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    assert torch.equal(
        load_motion(write_json(tmp_path, {"drags": drags, "masks": [{"file": "mask.png"}]}), FPS).state,
        right.state,
    )
    moving = np.zeros((2, 4, 8), bool)
    moving[1, :, 4:] = True
    np.save(tmp_path / "mask.npy", moving)
    assert torch.equal(
        load_motion(write_json(tmp_path, {"drags": drags, "masks": [{"file": "mask.npy"}]}), FPS).state,
        right.state,
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({}, "expected either box or file"),
        ({"box": [0, 0, 1, 1], "file": "a"}, "expected either box or file"),
        ({"box": [0.5, 0, 0.5, 1]}, "box: expected .left, top, right, bottom."),
        ({"box": [0, 0, 1, 2]}, "box: expected .left, top, right, bottom."),
        ({"box": [0, 0, 1]}, "box: expected 4 numbers"),
        ({"file": "none.png"}, "no such file"),
        ({"file": "text.png"}, "cannot be read as a mask"),
        ({"box": [0, 0, 1, 1]}, "empty: no point is given in any frame"),
    ],
)
def test_bad_masks(tmp_path: Path, mask: dict[str, Any], message: str) -> None:
    (tmp_path / "text.png").write_text("no")
    with pytest.raises(InputError, match=message):
        load_motion(write_json(tmp_path, {"frames": 3, "pins": [[0.5, 0.5]], "masks": [mask]}), FPS)


def textured(frames: int, shift: tuple[float, float]) -> np.ndarray:
    """A texture that drifts by `shift` pixels a frame, uint8 (T, 128, 128, 3)."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    large = noise.resize((512, 512), Image.Resampling.BICUBIC)
    views = []
    for number in range(frames):
        x, y = 150 - shift[0] * number, 150 - shift[1] * number
        view = large.transform(
            (128, 128), Image.Transform.AFFINE, (1, 0, x, 0, 1, y), Image.Resampling.BICUBIC
        )
        views.append(np.repeat(np.asarray(view)[..., None], 3, axis=2))
    return np.stack(views)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with VideoFileSink(tmp_path / "clip.mp4", 128, 128, 16) as sink:
        sink.write(textured(17, (1.5, -1.0)))
    return tmp_path / "clip.mp4"


def test_motion_is_taken_from_a_clip(clip: Path) -> None:
    tracks = load_motion(clip, FPS)
    assert tracks.num_frames == 17
    assert tracks.num_tracks >= 32
    both = (tracks.state[:, 1:] == VISIBLE) & (tracks.state[:, :-1] == VISIBLE)
    steps = (tracks.points[:, 1:] - tracks.points[:, :-1])[both] * 128
    assert torch.allclose(steps.median(dim=0).values, torch.tensor([1.5, -1.0]), atol=0.1)
    assert (steps - torch.tensor([1.5, -1.0])).norm(dim=-1).quantile(0.9) < 0.3


def test_a_clip_in_a_motion_file_begins_where_it_says(clip: Path) -> None:
    content = {"clip": {"file": "clip.mp4", "points": 9, "seconds": 0.5, "start": 1}}
    tracks = load_motion(write_json(clip.parent, content), FPS)
    assert tracks.num_frames == 24
    assert (tracks.state[:, :16] == UNSPECIFIED).all()
    assert (tracks.state[:, 16] == VISIBLE).any()


def test_clips_without_anything_to_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, frames in (("flat", np.full((9, 64, 64, 3), 90, np.uint8)), ("one", textured(1, (0, 0)))):
        with VideoFileSink(tmp_path / f"{name}.mp4", *frames.shape[1:3], 16) as sink:
            sink.write(frames)
    with pytest.raises(InputError, match=r"flat\.mp4: shows nothing that can be followed"):
        load_motion(tmp_path / "flat.mp4", FPS)
    with pytest.raises(InputError, match=r"one\.mp4: has one frame"):
        load_motion(tmp_path / "one.mp4", FPS)
    with pytest.raises(InputError, match=r"none.mp4: no such file"):
        load_motion(tmp_path / "none.mp4", FPS)
    for row, message in (
        ({"tracker": "tapir"}, "tracker: expected one of lucas-kanade, cotracker"),
        ({"points": 0}, "points: expected 1 to 1024"),
        ({"tracker": "cotracker"}, "cotracker: its package is not installed"),
    ):
        with pytest.raises(InputError, match=message):
            load_motion(write_json(tmp_path, {"clip": {"file": "one.mp4"} | row}), FPS)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        InputError, match=r"OpenCV is not installed, expected `pip install \"streamgen\[track"
    ):
        load_motion(tmp_path / "flat.mp4", FPS)


def test_cotracker_is_asked_as_its_package_wants(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with CoTrackerPredictor's interface; the real one was not available here."""

    class Predictor:
        def __init__(self, checkpoint: str) -> None:
            assert Path(checkpoint).name == "weights.pth"

        def __call__(self, video: torch.Tensor, grid_size: int) -> tuple[torch.Tensor, torch.Tensor]:
            assert video.shape == (1, 17, 3, 256, 256)
            assert video.max() > 1
            points = torch.full((1, 17, grid_size**2, 2), 127.5)
            return points, torch.ones(1, 17, grid_size**2).bool()

    package, module = types.ModuleType("cotracker"), types.ModuleType("cotracker.predictor")
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.CoTrackerPredictor = Predictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cotracker", package)
    monkeypatch.setitem(sys.modules, "cotracker.predictor", module)
    (clip.parent / "weights.pth").touch()
    row = {"file": "clip.mp4", "tracker": "cotracker", "points": 16, "weights": "weights.pth"}
    tracks = load_motion(write_json(clip.parent, {"clip": row}), FPS)
    assert (tracks.num_tracks, tracks.num_frames) == (16, 17)
    assert torch.allclose(tracks.points, torch.tensor(0.5))


def test_files_of_a_motion_are_known(tmp_path: Path) -> None:
    """Their contents are part of a job's key."""
    content = {"arrays": {"file": "a.npy", "visible": "v.npy"}, "clip": {"file": "c.mp4"}}
    content |= {"masks": [{"file": "m.png"}, {"box": [0, 0, 1, 1]}, 3]}
    names = ["a.npy", "v.npy", "c.mp4", "m.png"]
    assert files_of(write_json(tmp_path, content)) == [tmp_path / name for name in ["motion.json", *names]]
    assert files_of(with_folder(content, Path("/x"))) == [Path("/x") / name for name in names]
    assert files_of(str(tmp_path / "none.json")) == [tmp_path / "none.json"]
    assert files_of({"arrays": 3, "masks": {}, "clip": {"file": ["x"]}}) == []


def test_tracks_are_drawn_where_they_are() -> None:
    tracks = merge([drag((0.25, 0.25), (0.75, 0.25), 9), pins([(0.5, 0.75)], 4)])
    frames = draw_frames(blank(64, 64), tracks)
    assert frames.shape == (9, 64, 64, 3)
    plain = blank(64, 64)[0]
    for number, x in ((0, 16), (8, 48)):
        assert (frames[number, 16, x] != plain[16, x]).any(), number
    assert (frames[0, 14:18, 48] == plain[14:18, 48]).all()
    assert (frames[8, 14:18, 32] != plain[14:18, 32]).any(), "the tail"
    assert (frames[3, 48, 32] != plain[48, 32]).any()
    assert (frames[4, 48, 32] == plain[48, 32]).all(), "the pin has ended"
    picture = draw_picture(plain, tracks)
    assert all((picture[14:18, x] != plain[14:18, x]).any() for x in range(17, 48, 4))


@pytest.mark.parametrize("suffix", ["mp4", "png", "gif", "webp"])
def test_preview_command(tmp_path: Path, clip: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    motion, out = write_json(tmp_path, {"pins": [[0.5, 0.5]]}), tmp_path / f"out.{suffix}"
    options = ["-o", out, "--over", clip, "--size", "64x64", "--seconds", 0.5]
    done = call(capsys, "motion", "preview", motion, *options)
    assert (done.code, done.stdout) == (0, f"{out}\n"), done
    if suffix == "mp4":
        with av.open(str(out)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 8
    else:
        with Image.open(io.BytesIO(out.read_bytes())) as image:
            assert (image.size, getattr(image, "n_frames", 1)) == ((64, 64), 1 if suffix == "png" else 8)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.avi"], "expected a name that ends in"),
        (["-o", "none/a.png"], "cannot be written"),
        (["-o", "none/a.mp4"], "no such folder"),
        (["-o", "a.png", "--size", "7x7"], "--size: expected even sides"),
        (["-o", "a.png", "--size", "big"], "--size: expected WIDTHxHEIGHT"),
        (["-o", "a.png", "--over", "none.mp4"], "none.mp4: no such file"),
    ],
)
def test_bad_previews(
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    motion = write_json(tmp_path, {"pins": [[0.5, 0.5]]})
    assert message in call(capsys, "motion", "preview", motion, *options).error()
    assert [path.name for path in tmp_path.iterdir()] == ["motion.json"]


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_track_command(tmp_path: Path, clip: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / f"tracks.{suffix}"
    done = call(capsys, "motion", "track", clip, "-o", out, "--points", 9)
    assert (done.code, done.stdout) == (0, f"{out}\n"), done
    assert load_motion(out, FPS).num_frames == 17
    assert "expected a name that ends in" in call(capsys, "motion", "track", clip, "-o", "a.txt").error()
    assert "none.mp4: no such file" in call(capsys, "motion", "track", "none.mp4", "-o", out).error()
