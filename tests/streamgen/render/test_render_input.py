"""Live input and pictures from the command line and from jobs: rendered, recorded, replayed, refused."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from streamgen.video.read import read_clip
from streamgen.video.write import VideoFileSink
from tests.command_line import Outcome, call
from tests.live_input import clip
from tests.streams import RED
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), steps=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a clip of 21 frames and a picture."""
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "in.mp4", clip(21))
    Image.fromarray(clip(1, 8, (64, 40))[0].numpy()).save(tmp_path / "photo.png")
    return tmp_path


def write_clip(path: Path, frames: Tensor, fps: int = 16) -> None:
    with VideoFileSink(path, frames.shape[1], frames.shape[2], fps) as sink:
        sink.write(frames.numpy())
        sink.complete()


def render(capsys: pytest.CaptureFixture[str], model: Path, *more: object) -> Outcome:
    return call(capsys, "render", *more, "--model", model, "--device", "cpu")


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(name).with_suffix(".json").read_text(encoding="utf-8"))
    return found


def piped(monkeypatch: pytest.MonkeyPatch, folder: Path, data: bytes) -> None:
    """Standard input that is a file of these bytes."""
    (folder / "stdin").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=(folder / "stdin").open("rb")))


def y4m(frames: Tensor, cut: int = 0) -> bytes:
    out = b"YUV4MPEG2 W32 H32 F16:1 Cmono\n"
    out += b"".join(b"FRAME\n" + frame[..., 0].contiguous().numpy().tobytes() for frame in frames)
    return out[: len(out) - cut]


@pytest.mark.slow
def test_a_clip_is_made_anew_and_again(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as its input, its frames named chunk by chunk, and exact with the same input."""
    assert render(capsys, model, RED, "-o", "out.mp4", "--input", "in.mp4", "--strength", 0.8).code == 0
    made = record("out.mp4")
    assert (made["frames"], made["job"]["input"], made["notes"]) == (21, "in.mp4", [])
    assert made["input"]["chunks"][:2] == [[0, 0, 0, 0], [1, 1, 4, 0]]
    assert (made["input"]["frames"], made["input"]["skipped"], made["steps"]) == (21, 0, {"1": 6})
    assert len(read_clip("out.mp4", 16, 32, 32, 100)) == 21
    again = render(capsys, model, "out.json", "-o", "again.mp4")
    assert "its frames are those that were recorded, bit for bit" in again.stderr
    assert record("again.mp4")["replay"] == {"of": "out.json", "equal": True, "input_equal": True}


@pytest.mark.slow
def test_a_replay_takes_the_file_that_was_heard(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its name."""
    assert render(capsys, model, RED, "-o", "out.mp4", "--input", "in.mp4", "--strength", 0.8).code == 0
    Path("in.mp4").rename("moved.mp4")
    assert "no such file" in render(capsys, model, "out.json", "-o", "b.mp4").error()
    moved = render(capsys, model, "out.json", "-o", "b.mp4", "--input", "moved.mp4")
    assert record("b.mp4")["replay"]["equal"] is True, moved
    write_clip(Path("other.mp4"), clip(21, seed=9))
    refused = render(capsys, model, "out.json", "-o", "c.mp4", "--input", "other.mp4")
    assert "is another file than the record's" in refused.error()
    assert not Path("c.mp4").exists()


def test_a_stream_goes_on_by_itself_behind_its_input(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = render(capsys, model, RED, "-o", "out.mp4", "--input", "in.mp4", "--seconds", 2)
    note = "input: in.mp4 has ended; the stream goes on by itself from 1.3125 s"
    assert note in outcome.stderr
    assert (record("out.mp4")["frames"], record("out.mp4")["notes"]) == (32, [note])
    assert render(capsys, model, RED, "-o", "short.mp4", "--input", "in.mp4", "--seconds", 0.5).code == 0
    assert record("short.mp4")["frames"] == 8


@pytest.mark.parametrize("frames", [pytest.param(21, marks=pytest.mark.slow), 20])
def test_standard_input_is_rendered_until_it_ends(
    frames: int,
    folder: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Y4M and raw, at the end of a chunk and in the middle of one; a replay says whether it was the same."""
    pictures = clip(frames)[..., :1].expand(-1, -1, -1, 3).contiguous()
    raw = pictures.numpy().tobytes()
    for name, data, more in (
        ("y", y4m(pictures), ()),
        ("r", raw, ("--input-size", "32x32", "--input-rate", 16)),
    ):
        piped(monkeypatch, folder, data)
        outcome = render(capsys, model, RED, "-o", f"{name}.mp4", "--input", "-", *more)
        assert outcome.code == 0, outcome
        made = record(f"{name}.mp4")
        assert (made["frames"], made["notes"]) == (frames, [])
        piped(monkeypatch, folder, data)
        render(capsys, model, f"{name}.json", "-o", "again.mp4", "--input", "-", *more)
        assert record("again.mp4")["replay"] == {"of": f"{name}.json", "equal": True, "input_equal": True}
    piped(monkeypatch, folder, clip(frames, seed=4).numpy().tobytes())
    other = render(capsys, model, "r.json", "-o", "other.mp4", "--input", "-", "--input-size", "32x32")
    assert "its input has other frames than that of r.json" in other.stderr
    assert record("other.mp4")["replay"]["equal"] is False


def test_a_pipe_that_closes_in_mid_frame_gives_a_clip_of_what_came(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, folder, y4m(clip(12), cut=10))
    outcome = render(capsys, model, RED, "-o", "out.mp4", "--input", "-")
    assert outcome.code == 0
    assert "note: input: -: ends in the middle of frame 11: 1014 of 1024 bytes" in outcome.stderr
    assert record("out.mp4")["frames"] == 11


def test_jobs_have_inputs_strengths_masks_and_pictures(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And resume by the contents of their files."""
    np.save("mask.npy", np.eye(8))
    job = {
        "prompt": RED,
        "input": "in.mp4",
        "strength": 0.8,
        "shots": [
            {"at": 0.3, "mask": "mask.npy"},
            {"at": 0.5, "strength": 1, "mask": {"box": [0, 0, 1, 1]}},
            {"at": 0.8, "picture": {"file": "photo.png", "use": "reference"}},
            {"at": 1, "prompt": "a blue star", "picture": "photo.png"},
        ],
    }
    Path("jobs.jsonl").write_text(json.dumps(job) + "\n", encoding="utf-8")
    dry = render(capsys, model, "jobs.jsonl", "-o", "clips", "--dry-run")
    assert dry.code == 0, dry
    assert render(capsys, model, "jobs.jsonl", "-o", "clips").code == 0
    (made,) = [json.loads(p.read_text()) for p in Path("clips").glob("*.json") if "manifest" not in p.name]
    assert made["frames"] == 21
    assert [receipt["status"] for receipt in made["receipts"]] == ["applied"] * 4
    events = made["timeline"]["events"]
    assert [sorted(e.keys() & {"mask", "picture", "settings", "input"}) for e in events] == [
        ["input", "settings"],
        ["mask"],
        ["mask", "settings"],
        ["picture"],
        ["picture"],
        ["input"],
    ][: len(events)]
    assert made["notes"] == [
        f"picture of {at:g} s: cropped at the centre, from 40x64 to the shape of 32x32" for at in (0.8, 1)
    ]
    there = render(capsys, model, "jobs.jsonl", "-o", "clips")
    assert len(list(Path("clips").glob("*.mp4"))) == 1, there


@pytest.mark.slow
def test_jobs_are_known_by_the_contents_of_their_files(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("mask.npy", np.eye(8))
    job = {"prompt": RED, "input": "in.mp4", "mask": "mask.npy"}
    job |= {"shots": [{"at": 1, "picture": "photo.png"}]}
    Path("jobs.jsonl").write_text(json.dumps(job) + "\n", encoding="utf-8")
    assert render(capsys, model, "jobs.jsonl", "-o", "clips").code == 0
    (made,) = [json.loads(path.read_text()) for path in Path("clips").glob("00000*.json")]
    for change in (
        lambda: np.save("mask.npy", np.ones((8, 8))),
        lambda: Image.new("RGB", (32, 32)).save("photo.png"),
        lambda: write_clip(Path("in.mp4"), clip(21, seed=7)),
    ):
        before = len(list(Path("clips").glob("*.mp4")))
        change()
        assert render(capsys, model, "jobs.jsonl", "-o", "clips").code == 0
        assert len(list(Path("clips").glob("*.mp4"))) == before + 1
    (path,) = [
        p for p in Path("clips").glob("00000*.json") if json.loads(p.read_text())["key"] == made["key"]
    ]
    assert json.loads(path.read_text())["timeline"] == made["timeline"]


@pytest.mark.slow
def test_a_replay_of_pictures_needs_nothing_beside_its_record(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--picture", "0.5:photo.png", "--reference", "1:photo.png", "--at", "0.7:a blue star")
    assert render(capsys, model, RED, "-o", "out.mp4", "--seconds", 1.5, *told).code == 0
    assert [r["status"] for r in record("out.mp4")["receipts"]] == ["applied"] * 3
    Path("photo.png").unlink()
    render(capsys, model, "out.json", "-o", "again.mp4")
    assert record("again.mp4")["replay"]["equal"] is True


@pytest.mark.slow
def test_a_saved_stream_goes_on_with_its_input(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut anywhere, the two parts are the whole."""
    live = ("--input", "in.mp4")
    assert render(capsys, model, RED, "-o", "whole.mp4", *live, "--png").code == 0
    told = ("-o", "a.mp4", *live, "--seconds", 0.625, "--save-state", "a.state", "--png")
    assert render(capsys, model, RED, *told).code == 0
    missing = render(capsys, model, "-o", "b.mp4", "--continue-from", "a.state", "--seconds", 0.625)
    assert "of its live input next" in missing.error()
    told = ("-o", "b.mp4", "--continue-from", "a.state", "--seconds", 0.625, *live, "--png")
    assert render(capsys, model, *told).code == 0
    pictures = [
        np.stack([np.asarray(Image.open(p)) for p in sorted(Path(f"{n}.frames").glob("*.png"))])
        for n in ("whole", "a", "b")
    ]
    assert np.array_equal(np.concatenate(pictures[1:]), pictures[0][:20])


ONE_LINE: list[tuple[tuple[object, ...], str]] = [
    (("--input", "none.mp4"), "--input: no such file: none.mp4"),
    (("--input", "photo.txt"), "photo.txt: "),
    (("--input", "in.mp4", "--strength", 0.5), r"strength: expected 0.75 to 1"),
    (("--input", "in.mp4", "--strength", 0), "--strength: expected above 0 and at most 1, found 0"),
    (("--input", "in.mp4", "--strength", 1.5), "--strength: expected above 0 and at most 1, found 1.5"),
    (("--input", "in.mp4", "--strength", "nan"), "--strength: expected above 0 and at most 1, found nan"),
    (("--strength", 0.8), "--strength: not here, it is about live input, expected --input"),
    (("--mask", "photo.png"), "--mask: not here, it is about live input, expected --input"),
    (("--input", "in.mp4", "--mask", "none.png"), "--mask: no such file: none.png"),
    (("--input", "in.mp4", "--mask", "in.mp4"), "in.mp4: cannot be read as a mask"),
    (("--input", "in.mp4", "--input-size", "32x32"), "--input-size: not here, in.mp4 says its own size"),
    (("--input", "-", "--input-size", "big"), "--input-size: expected WIDTHxHEIGHT, found 'big'"),
    (("--input", "-", "--input-rate", 16), "--input-rate: expected --input-size beside it"),
    (("--input", "-", "--input-size", "32x32", "--input-rate", -1), "--input-rate: expected above 0"),
    (("--input", "-", "--input-size", "0x32"), "expected sides of 1 to 16384, found 0x32"),
    (("--input", "-"), "input -: expected a Y4M stream"),
    (("--input", "in.mp4", "--image", "photo.png"), "--input: expected no image and no video beside it"),
    (("--picture", "photo.png"), "--picture: expected SECONDS:FILE, found 'photo.png'"),
    (("--picture", "x:photo.png"), "--picture: expected a number of seconds, found 'x'"),
    (("--picture", "1:none.png"), "--picture '1:none.png': no such file: none.png"),
    (("--picture", "1:in.mp4"), "in.mp4: cannot be read as an image"),
    (("--picture", "99:photo.png"), "--picture '99:photo.png': expected from 0 to before the end"),
    (("--reference", "0:photo.png"), "a reference takes the sink's place, which there is not yet"),
    (("--reference", "1:photo.png", "--set", "sink_frames=0"), "has no sink whose place a reference"),
    (("--reference", "1:photo.png", "--set", "recache_mode=joint"), "a reference needs recache_mode chunks"),
]


@pytest.mark.parametrize(("told", "message"), ONE_LINE)
def test_what_cannot_be_is_refused_in_one_line(
    told: tuple[object, ...],
    message: str,
    folder: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("photo.txt").write_text("no clip", encoding="utf-8")
    piped(monkeypatch, folder, b"neither this nor that")
    outcome = render(capsys, model, RED, "-o", "out.mp4", *told)
    if "which there is not yet" in message:
        assert message in outcome.stderr
        return
    assert message in outcome.error()
    assert not Path("out.mp4").exists()
    assert not Path("out.json").exists()


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"input": "none.mp4"}, "input: no such file: none.mp4"),
    ({"input": "-"}, "input: no such file"),
    ({"input": 7}, "input: expected a path, found 7"),
    ({"input": "in.mp4", "video": "in.mp4"}, "input: expected no image and no video beside it"),
    ({"strength": "much"}, "strength: expected above 0 and at most 1, found 'much'"),
    ({"strength": True}, "strength: expected above 0 and at most 1, found True"),
    ({"mask": {"circle": 1}}, "mask: unknown key 'circle'"),
    ({"mask": "none.png"}, "mask: no such file: none.png"),
    ({"picture": {"use": "scene"}}, "picture: expected a file, found none"),
    ({"picture": {"file": "photo.png", "use": "sink"}}, "picture.use: expected scene or reference"),
    ({"picture": {"file": "photo.png", "as": "sink"}}, "picture: unknown key 'as'"),
    (
        {"picture": "photo.png", "cache": "keep"},
        "picture: as scene it comes with cache clear, found cache keep",
    ),
    (
        {"shots": [{"at": 1, "picture": "photo.png", "prompt": "a", "over": 1}]},
        "over: cache clear leaves nothing",
    ),
    ({"shots": [{"at": 1, "strength": 2}]}, "shots[0].strength: expected above 0 and at most 1, found 2"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_job_rows_that_cannot_be_stop_the_run_in_one_line(
    row: dict[str, Any], message: str, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("jobs.jsonl").write_text(json.dumps({"prompt": RED} | row) + "\n", encoding="utf-8")
    outcome = render(capsys, model, "jobs.jsonl", "-o", "clips")
    assert message in outcome.error()
    assert "line 1" in outcome.error()


def test_what_the_model_of_a_job_cannot_do_costs_its_item_alone(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line each; the item beside them is made."""
    reference = {"at": 0.5, "picture": {"file": "photo.png", "use": "reference"}}
    rows: list[tuple[dict[str, Any], str]] = [
        ({"input": "in.mp4", "strength": 0.5}, "strength: expected 0.75 to 1"),
        ({"input": "in.mp4", "set": {"input_prompt": 3}}, "input_prompt: expected str, found 3"),
        ({"shots": [reference], "set": {"sink_frames": 0}}, "has no sink whose place a reference"),
        ({"seconds": 0.3}, ""),
    ]
    jobs = [{"prompt": RED, "seconds": 1} | row for row, _ in rows]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)), encoding="utf-8")
    outcome = render(capsys, model, "jobs.jsonl", "-o", "clips")
    assert outcome.code == 1, outcome
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    for number, (line, (_, message)) in enumerate(zip(errors, rows, strict=False), 1):
        assert line.startswith(f"error: line {number}: ")
        assert message in line
    assert len(list(Path("clips").glob("*.mp4"))) == 1


def test_a_timeline_whose_strength_the_model_has_no_level_for_is_refused(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opening = {"prompt": RED, "settings": {"strength": 0.5}, "input": [0]}
    row = {"format": "streamgen-timeline", "version": 1, "fps": 16, "seed": 0}
    row |= {"events": [{"chunk": 0, "frame": 0, **opening}]}
    Path("told.json").write_text(json.dumps(row), encoding="utf-8")
    refused = render(capsys, model, "told.json", "-o", "out.mp4", "--input", "in.mp4")
    assert "strength: expected 0.75 to 1" in refused.error()
    assert not Path("out.mp4").exists()


@pytest.mark.slow
def test_an_input_that_cannot_be_heard_costs_its_item_alone(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.mp4").write_text("no clip", encoding="utf-8")
    rows = [{"prompt": RED, "input": name} for name in ("bad.mp4", "in.mp4")]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    outcome = render(capsys, model, "jobs.jsonl", "-o", "clips")
    assert outcome.code == 1, outcome
    assert len(list(Path("clips").glob("*.mp4"))) == 1
    # a jobs file has its own
    refused = render(capsys, model, "jobs.jsonl", "-o", "clips", "--input", "in.mp4")
    assert "--input: not here, a jobs file has its own" in refused.error()


@pytest.mark.slow
def test_a_timeline_without_input_takes_none(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(capsys, model, RED, "-o", "plain.mp4", "--seconds", 0.5).code == 0
    assert record("plain.mp4")["input"] is None
    refused = render(capsys, model, "plain.json", "-o", "again.mp4", "--input", "in.mp4")
    assert "--input: the timeline heard none" in refused.error()
    assert render(capsys, model, RED, "-o", "out.mp4", "--input", "in.mp4").code == 0
    told = record("out.mp4")["timeline"]
    Path("bare.json").write_text(json.dumps(told), encoding="utf-8")
    refused = render(capsys, model, "bare.json", "-o", "again.mp4")
    assert "heard a live input: expected it as --input, found none" in refused.error()
