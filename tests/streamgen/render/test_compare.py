"""Replays that prove themselves, clips made longer, and where two renders differ."""

import hashlib
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from streamgen.errors import InputError
from streamgen.render.compare import compare_renders
from streamgen.video.outputs import PartDigests
from streamgen.video.write import VideoFileSink
from tests.command_line import call
from tests.tiny_checkpoints import write_checkpoint

PROMPT = "a red circle drifts right over the sea"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1)


def record(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return content


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def moving(count: int, change: dict[int, int] | None = None) -> np.ndarray:
    """Frames of one grey each, some brighter than others by an offset, uint8 (T, 32, 32, 3)."""
    values = np.arange(count) * 4 + 20
    for number, offset in (change or {}).items():
        values[number] += offset
    return np.broadcast_to(values[:, None, None, None], (count, 32, 32, 3)).astype(np.uint8)


def write(path: Path, frames: np.ndarray, lossless: bool = True, fps: float = 16) -> Path:
    with VideoFileSink(path, *frames.shape[1:3], fps, lossless) as sink:
        sink.write(frames)
    return path


def test_frames_that_differ_are_found(tmp_path: Path) -> None:
    first = write(tmp_path / "a.mp4", moving(20))
    second = write(tmp_path / "b.mp4", moving(22, {5: 8, 6: 1, 12: 3}))
    result = compare_renders(first, second)
    assert not result["equal"]
    assert result["frames"] == [20, 22]
    assert result["first_difference"] == {"frame": 5, "seconds": 0.3125}
    assert (result["differing_frames"], result["ranges"]) == (3, [[5, 6], [12, 12]])
    assert (result["largest_difference"], result["worst"]["frame"]) == (8, 5)
    assert result["worst"]["psnr"] == pytest.approx(10 * np.log10(255**2 / 64), abs=0.01)
    assert result["psnr"] == pytest.approx(10 * np.log10(255**2 * 20 / (64 + 1 + 9)), abs=0.01)
    assert result["raw_frames_equal"] is None
    longer = compare_renders(first, write(tmp_path / "c.mp4", moving(22)))
    assert (longer["equal"], longer["first_difference"]) == (False, {"frame": 20, "seconds": 1.25})
    same = compare_renders(first, write(tmp_path / "d.mp4", moving(20)))
    assert (same["equal"], same["first_difference"], same["psnr"]) == (True, None, None)
    small = compare_renders(first, write(tmp_path / "e.mp4", moving(20)[:, :16]))
    assert (small["equal"], small["size"]) == (False, ["32x32", "32x16"])


def test_compare_command(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, again = (tmp_path / f"{name}.mp4" for name in "abc")
    options = ["--seconds", 0.5, "--model", checkpoint, "--threads", 1]
    for path, seed in ((first, 0), (second, 1), (again, 0)):
        assert call(capsys, "render", PROMPT, "-o", path, "--seed", seed, *options).code == 0
    same = call(capsys, "compare", first, again, "--json")
    result = json.loads(same.stdout)
    assert (same.code, result["equal"], result["raw_frames_equal"], result["records"]) == (0, True, True, {})
    other = call(capsys, "compare", first, second, "--json")
    result = json.loads(other.stdout)
    assert (other.code, result["equal"], result["raw_frames_equal"]) == (1, False, False)
    assert result["records"]["seed"] == [0, 1]
    assert result["records"]["timeline.seed"] == [0, 1]
    assert set(result["records"]) <= {"seed", "key", "job.seed", "timeline.seed", "timeline.noise"}
    table = call(capsys, "compare", first, second)
    assert "first_difference" in table.stdout


@pytest.mark.parametrize("kind", ["missing", "text", "cut", "folder", "audio"])
def test_what_is_no_video_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    good, bad = write(tmp_path / "a.mp4", moving(20)), tmp_path / "bad.mp4"
    if kind == "text":
        bad.write_text("no")
    elif kind == "cut":
        bad.write_bytes(good.read_bytes()[:-400])
    elif kind == "folder":
        bad.mkdir()
    elif kind == "audio":
        with av.open(str(bad), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 16000
            container.mux(stream.encode(sound))
            container.mux(stream.encode(None))
    with pytest.raises(InputError, match=r"bad\.mp4") as caught:
        compare_renders(good, bad)
    assert "\n" not in str(caught.value)


def test_part_digests_do_not_depend_on_chunks() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (11, 2, 2, 3), np.uint8)
    expected = [hashlib.sha256(frames[a:b].tobytes()).hexdigest() for a, b in ((0, 4), (4, 5), (5, 11))]
    for step in (1, 3, 11):
        digests = PartDigests([4, 1, 6])
        for start in range(0, 11, step):
            digests.write(frames[start : start + step])
        assert [part.sha256 for part in digests.parts()] == expected
    assert PartDigests([]).parts() == ()


def test_a_replay_says_whether_it_is_the_same(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, short, other = (tmp_path / f"{name}.mp4" for name in ("first", "again", "short", "other"))
    model = ["--model", checkpoint, "--threads", 1]
    options = ["--seconds", 1, "--at", "0.5:sand", *model]
    assert call(capsys, "render", PROMPT, "-o", first, *options).code == 0
    done = call(capsys, "render", first.with_suffix(".json"), "-o", again, *model)
    assert "its frames are those that were recorded, bit for bit" in done.stderr
    assert record(again)["replay"] == {"of": str(first.with_suffix(".json")), "equal": True}
    assert call(capsys, "render", first.with_suffix(".json"), "-o", short, "--seconds", 0.5, *model).code == 0
    assert record(short)["replay"]["equal"] is None
    weights = write_checkpoint(tmp_path / "other_model", steps=1, seed=1)
    done = call(capsys, "render", first.with_suffix(".json"), "-o", other, "--model", weights)
    assert done.code == 0
    assert "note: the frames differ from those recorded in" in done.stderr
    assert record(other)["replay"]["equal"] is False


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0625, 1.25])
def test_a_finished_clip_is_made_longer_without_rendering_it_again(
    seconds: float, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it ends inside a chunk, and a second time."""
    head, longer, longest, whole = (
        tmp_path / f"{name}.mp4" for name in ("head", "longer", "longest", "whole")
    )
    states, model = [tmp_path / "s1", tmp_path / "s2"], ["--model", checkpoint, "--threads", 1]
    total = seconds + 1.5

    def render(*arguments: object) -> None:
        done = call(capsys, "render", *arguments, *model)
        assert done.code == 0, done

    render(PROMPT, "-o", head, "--seconds", seconds, "--save-state", states[0])
    more = ["--continue-from", states[0], "--extend", head, "--save-state", states[1]]
    render("-o", longer, "--seconds", 1, "--at", "0.5:sand", *more)
    render("-o", longest, "--seconds", 0.5, "--continue-from", states[1], "--extend", longer)
    render(PROMPT, "-o", whole, "--seconds", total, "--at", f"{seconds + 0.5}:sand")

    cut, end = round(seconds * 16), round(total * 16)
    made = decoded(longest)
    assert len(made) == end == record(longest)["frames"]
    np.testing.assert_array_equal(made[:cut], decoded(head))
    with av.open(str(longest)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    np.testing.assert_allclose(np.array(times, float) - float(times[0]), np.arange(end) / 16, atol=1e-6)
    assert [part["frames"] for part in record(longest)["parts"]] == [cut, 16, 8]
    difference = made.astype(float) - decoded(whole)
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 25

    again = tmp_path / "again.mp4"
    render(longest.with_suffix(".json"), "-o", again)
    assert record(again)["replay"]["equal"] is True
    assert record(again)["sha256"] == record(whole)["sha256"]


def test_only_the_clip_that_ends_there_can_be_made_longer(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, short, out, state = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4", tmp_path / "state"
    model = ["--model", checkpoint]
    call(capsys, "render", PROMPT, "-o", head, "--seconds", 1, "--save-state", state, *model)
    call(capsys, "render", PROMPT, "-o", short, "--seconds", 0.5, *model)
    go_on = ["render", "-o", out, "--seconds", 0.5, "--continue-from", state, *model, "--extend"]
    assert "ends at frame 8, the saved stream goes on at 16" in call(capsys, *go_on, short).error()
    assert "expected a rendered clip with its record" in call(capsys, *go_on, tmp_path / "none.mp4").error()
    odd = write(tmp_path / "odd.mp4", moving(16), lossless=False, fps=8)
    odd.with_suffix(".json").write_text(head.with_suffix(".json").read_text())
    assert "was encoded otherwise" in call(capsys, *go_on, odd).error()
    refused = call(capsys, "render", PROMPT, "-o", out, *model, "--extend", head).error()
    assert "only --continue-from takes it" in refused
    assert not out.exists()
