"""`streamgen render`: what is on disk afterwards, and that it is what a session in process makes."""

import gc
import hashlib
import json
import signal
import weakref
from pathlib import Path
from typing import Any

import decord
import numpy as np
import pytest
import torch
from PIL import Image

from models.context import ChunkPlan
from streamgen.motion.file import motion_to_json
from streamgen.motion.tracks import drag
from streamgen.pipeline import Pipeline, load_pipeline
from streamgen.render.clip import Hooks, record_notes, write_clip
from streamgen.render.job import job_from_command_line
from streamgen.render.sources import open_job, read_timeline
from streamgen.stream.session import Session
from streamgen.stream.timeline import StreamEvent
from tests.command_line import call, call_process, spawn
from tests.tiny_checkpoints import write_checkpoint

PROMPT = "a red circle drifts right over the sea"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load_pipeline(checkpoint)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As many as the processes of these tests have: pictures are bit-exact for one thread count."""
    torch.set_num_threads(1)


def frames_of(session: Session, count: int) -> np.ndarray:
    """The first frames of a session, uint8 (T, H, W, 3)."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < count:
        parts.append(next(session).frames.numpy())
    return np.concatenate(parts)[:count]


def sha(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()


def record(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return content


@pytest.mark.slow
def test_a_process_renders_what_a_session_makes(tmp_path: Path, checkpoint: Path, pipeline: Pipeline) -> None:
    shots = ["--at", "1:a blue star", "--at", "1.5:sand"]
    arguments = [
        "render",
        PROMPT,
        "-o",
        "clip.mp4",
        "--seconds",
        "2",
        "--seed",
        "3",
        "--model",
        checkpoint,
        *shots,
    ]
    done = call_process(*arguments, cwd=tmp_path)
    assert done.code == 0, done
    assert done.stdout == "clip.mp4\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4"]

    session = pipeline.open(PROMPT, seed=3)
    session.submit(StreamEvent(prompt="a blue star"), at_frame=16)
    session.submit(StreamEvent(prompt="sand"), at_frame=24)
    expected = frames_of(session, 32)

    reader = decord.VideoReader(str(tmp_path / "clip.mp4"))
    assert reader.get_avg_fps() == pytest.approx(16)
    shown = reader.get_batch(range(len(reader))).asnumpy()
    assert shown.shape == expected.shape == (32, 32, 32, 3)
    assert psnr(luma(shown), luma(expected)) > 25
    assert psnr(coarse(shown), coarse(expected)) > 25
    assert psnr(luma(shown), luma(np.roll(expected, 1, axis=0))) < 20

    values = record(tmp_path / "clip.mp4")
    assert values["sha256"] == sha(expected)
    assert (values["frames"], values["fps"], values["width"], values["height"]) == (32, 16, 32, 32)
    assert values["weights"] == pipeline.digest
    assert values["threads"] == 1
    # chunks begin at frames 1 + 4 k: a change takes effect with the first one that is not too early
    assert [receipt["frame"] for receipt in values["receipts"]] == [17, 25]
    assert [event["frame"] for event in values["timeline"]["events"]] == [0, 17, 25]
    assert values["timings"]["wall"] >= values["timings"]["time_to_first_frame"] > 0
    assert values["peak_memory_mb"] > 0


def luma(frames: np.ndarray) -> np.ndarray:
    """Brightness, which the file has at full resolution; colours of random weights change per pixel."""
    return frames @ np.array([0.2126, 0.7152, 0.0722])


def coarse(frames: np.ndarray) -> np.ndarray:
    """Colours of 4x4 blocks."""
    count, height, width, _ = frames.shape
    return frames.reshape(count, height // 4, 4, width // 4, 4, 3).mean(axis=(2, 4))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize(("seconds", "frames"), [(0.1, 2), (0.0625, 1), (1.0625, 17), (1.1, 18)])
def test_length_is_exact(
    seconds: float, frames: int, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.mp4"
    assert call(capsys, "render", PROMPT, "-o", path, "--seconds", seconds, "--model", checkpoint).code == 0
    assert len(decord.VideoReader(str(path))) == record(path)["frames"] == frames


def test_motion_files_start_at_their_shots(
    tmp_path: Path, checkpoint: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    tracks = drag((0.2, 0.2), (0.8, 0.8), 16)
    (tmp_path / "pull.json").write_text(json.dumps(motion_to_json(tracks)))
    path = tmp_path / "a.mp4"
    options = ["--seconds", 2, "--model", checkpoint]
    assert call(capsys, "render", PROMPT, "-o", path, "--motion", tmp_path / "pull.json", *options).code == 0
    assert record(path)["sha256"] == sha(frames_of(pipeline.open(PROMPT, motion=tracks), 32))

    job = {"prompt": PROMPT, "id": "late", "shots": [{"at": 0.5, "motion": "pull.json"}]}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    assert call(capsys, "render", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", *options).code == 0
    session = pipeline.open(PROMPT)
    session.submit(StreamEvent(motion=tracks), at_frame=8)
    assert record(tmp_path / "out" / "00000-late-s0.mp4")["sha256"] == sha(frames_of(session, 32))


@pytest.mark.parametrize("seconds", [1.25, pytest.param(1.0625, marks=pytest.mark.slow)])
def test_saved_and_continued_in_another_process(
    seconds: float, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the first clip ends inside a chunk, with a change that the saved stream waits for."""
    total, model = 2.5, ["--model", checkpoint]
    late = f"{seconds - 0.01}:a blue star"
    whole, head, tail, state = (tmp_path / name for name in ("whole.mp4", "head.mp4", "tail.mp4", "state"))
    changes = ["--at", late, "--at", f"{seconds + 0.5}:sand"]
    assert call(capsys, "render", PROMPT, "-o", whole, "--seconds", total, *changes, *model).code == 0
    first = ["-o", head, "--seconds", seconds, "--at", late, "--save-state", state]
    saved = call(capsys, "render", PROMPT, *first, *model)
    assert saved.code == 0
    assert "change 1 comes after the last chunk began" in saved.stderr
    rest = ["-o", tail, "--seconds", total - seconds, "--at", "0.5:sand", "--continue-from", state]
    done = call_process("render", *rest, *model, cwd=tmp_path)
    assert done.code == 0, done

    pipeline = load_pipeline(checkpoint)
    session = pipeline.replay(read_timeline(whole.with_suffix(".json"))[0])
    frames, cut = frames_of(session, 40), round(seconds * 16)
    assert record(whole)["sha256"] == sha(frames)
    assert record(head)["sha256"] == sha(frames[:cut])
    assert record(tail)["sha256"] == sha(frames[cut:])
    assert record(tail)["first_frame"] == cut


def test_a_continuation_can_change_the_prompt(
    tmp_path: Path, checkpoint: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    state, tail, model = tmp_path / "state", tmp_path / "tail.mp4", ["--model", checkpoint]
    head = ["-o", tmp_path / "head.mp4", "--seconds", 1.0625, "--save-state", state]
    assert call(capsys, "render", PROMPT, *head, *model).code == 0
    assert (
        call(capsys, "render", "sand", "-o", tail, "--seconds", 1, "--continue-from", state, *model).code == 0
    )
    session = pipeline.open(PROMPT)
    session.submit(StreamEvent(prompt="sand"), at_frame=17)
    assert record(tail)["sha256"] == sha(frames_of(session, 33)[17:])
    refused = call(capsys, "render", tail.with_suffix(".json"), "-o", tmp_path / "x.mp4", *model)
    assert (refused.code, "continues another one" in refused.stderr) == (2, True)


def test_timelines_and_records_replay(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", checkpoint]
    first, again, short = (tmp_path / name for name in ("first.mp4", "again.mp4", "short.mp4"))
    tracks = {"drags": [{"from": [0.1, 0.1], "to": [0.9, 0.9], "seconds": 1}]}
    (tmp_path / "pull.json").write_text(json.dumps(tracks))
    options = ["--seconds", 3, "--at", "1:sand", "--motion", tmp_path / "pull.json", "--set", "steps=3"]
    assert call(capsys, "render", PROMPT, "-o", first, "--seed", 5, *options, *model).code == 0
    assert call(capsys, "render", first.with_suffix(".json"), "-o", again, *model).code == 0
    assert record(again)["sha256"] == record(first)["sha256"]
    timeline = tmp_path / "session.timeline.json"
    timeline.write_text(json.dumps(record(first)["timeline"]))
    assert call(capsys, "render", timeline, "-o", short, *model).code == 0
    # the last event is at frame 17, and 2 s follow
    assert record(short)["frames"] == 17 + 32


def test_records_of_image_starts_replay(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (37, 51), "orange").save(tmp_path / "odd.png")
    first, again, model = (
        tmp_path / "first.mp4",
        tmp_path / "again.mp4",
        ["--model", checkpoint, "--seconds", 1],
    )
    assert call(capsys, "render", PROMPT, "-o", first, "--image", tmp_path / "odd.png", *model).code == 0
    assert call(capsys, "render", first.with_suffix(".json"), "-o", again, *model).code == 0
    assert record(again)["sha256"] == record(first)["sha256"]


def test_timelines_of_image_starts_replay_with_that_image_alone(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A timeline has no picture in it, and a record names a file that may have changed since."""
    Image.new("RGB", (37, 51), "orange").save(tmp_path / "start.png")
    Image.new("RGB", (37, 51), "teal").save(tmp_path / "other.png")
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    options = ["--model", checkpoint, "--seconds", 0.5]
    assert call(capsys, "render", PROMPT, "-o", first, "--image", tmp_path / "start.png", *options).code == 0
    timeline = tmp_path / "session.timeline.json"
    timeline.write_text(json.dumps(record(first)["timeline"]))
    replay = ["render", timeline, "-o", again, *options]
    assert "image or video: expected 1 frame with sha256" in call(capsys, *replay).error()
    refused = call(capsys, *replay, "--image", tmp_path / "other.png").error()
    assert "found 1 frame with sha256" in refused
    assert call(capsys, *replay, "--image", tmp_path / "start.png").code == 0
    assert record(again)["sha256"] == record(first)["sha256"]
    (tmp_path / "other.png").replace(tmp_path / "start.png")
    call(capsys, "render", first.with_suffix(".json"), "-o", again, *options).error()


def test_a_change_that_was_refused_is_noted(pipeline: Pipeline, tmp_path: Path) -> None:
    """Each of the two is possible alone; together they are not, which shows when their chunk begins."""
    clip = open_job(pipeline, job_from_command_line(PROMPT, 0.5, 0), tmp_path / "a.mp4")
    clip.session.submit(StreamEvent(settings={"motion_guidance": 0.0}))
    clip.session.submit(StreamEvent(settings={"text_guidance": 0.5}))
    notes = record_notes(write_clip(clip))
    assert len(notes) == 1
    assert notes[0].startswith("change 2 was refused: settings: guidance")
    assert "sum to at least 1" in notes[0]


@pytest.mark.slow
def test_ctrl_c_leaves_a_part_that_plays(tmp_path: Path, checkpoint: Path) -> None:
    arguments = ["render", "a red circle", "-o", "long.mp4", "--seconds", "80000", "--model", checkpoint]
    process = spawn(*arguments, cwd=tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline() == "long.mp4: rendering 1280000 frames\n"
    part = tmp_path / "long.mp4.part"
    while not part.exists() or part.stat().st_size < 4000:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    lines = [line for line in err.splitlines() if not line.startswith("long.mp4: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("interrupted: the first ")
    assert lines[0].endswith("frames are in long.mp4.part")
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["long.mp4.part"]
    assert len(decord.VideoReader(str(part))) == int(lines[0].split()[3])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The session and the writer hold a window, not the stream: nothing of a finished chunk is left."""
    model = load_pipeline(write_checkpoint(tmp_path / "model", plan=ChunkPlan(2, 1, 1, 2)))
    clip = open_job(model, job_from_command_line(PROMPT, 4.0, 0), tmp_path / "a.mp4")
    made: list[weakref.ref[torch.Tensor]] = []
    runner, alive = clip.session.runner, []
    plain = runner.decode

    def decode(*arguments: Any) -> Any:
        frames, state = plain(*arguments)
        made.append(weakref.ref(frames))
        return frames, state

    def count(done: int) -> None:
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))

    runner.decode = decode  # type: ignore[method-assign]
    write_clip(clip, Hooks(progress=count))
    assert len(made) == 9
    assert max(alive) <= 1


def test_half_precision_streams(checkpoint: Path) -> None:
    """What a GPU runs by default, here on the CPU: text, motion, re-noising, recache and fork in bfloat16."""
    model = load_pipeline(checkpoint, "cpu", torch.bfloat16)
    settings = {"sampler": "renoise", "context_noise": 0.1}
    session = model.open("a red circle", motion=drag((0.2, 0.2), (0.8, 0.8), 40), settings=settings)
    frames_of(session, 20)
    session.submit(StreamEvent(prompt="sand"))
    frames_of(session, 4)
    assert session.state.latents.ring.keys.dtype == torch.bfloat16
    twin = session.fork()
    assert np.array_equal(frames_of(session, 8), frames_of(twin, 8))
