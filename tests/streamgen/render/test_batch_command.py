"""`streamgen render JOBS`: the dry run, what is said, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from tests.batch_folder import files, items
from tests.command_line import Outcome, call
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1)


def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path, *more: object) -> Outcome:
    fixed = ["render", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--model", checkpoint]
    return call(capsys, *fixed, "--seconds", 0.125, *more)


def test_dry_run_checks_all_and_writes_nothing(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    rows = ["sand", {"prompt": "sea", "image": "a.png"}, {"prompt": "a star", "samples": 2}]
    items(tmp_path, [*rows, {"prompt": "x", "size": "8x8"}, {"prompt": "x", "motion": {"pins": 3}}])
    before = sorted(tmp_path.rglob("*"))
    done = command(capsys, tmp_path, checkpoint, "--dry-run")
    assert done.code == 1
    states = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert states == ["render", "invalid", "render", "render", "invalid", "invalid"]
    assert "error: line 2: 00001-sea-s1: " in done.stderr
    assert "makes 32x32 only, found 8x8" in done.stderr
    assert "6 items: 3 render, 3 invalid; 6 frames (0.4 s of video), about " in done.stderr
    assert sorted(tmp_path.rglob("*")) == before

    items(tmp_path, ["sand"])
    assert command(capsys, tmp_path, checkpoint, "-q").code == 0
    after = files(tmp_path / "out")
    plan = command(capsys, tmp_path, checkpoint, "--dry-run", "--json")
    events = [json.loads(line) for line in plan.stdout.splitlines()]
    assert [event["event"] for event in events] == ["item", "plan"]
    assert (events[0]["status"], events[1]["frames"], events[1]["estimate_seconds"]) == ("done", 0, 0.0)
    assert files(tmp_path / "out") == after


def test_events_for_programs(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items(tmp_path, ["sand gargoyle", {"prompt": "sea", "set": {"stepz": 1}}])
    done = command(capsys, tmp_path, checkpoint, "--json")
    assert (done.code, done.stderr) == (1, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["begin", "start"]
    assert kinds[-1] == "end"
    assert {"progress", "note"} <= set(kinds)
    made, failed = (event for event in events if event["event"] == "item")
    assert (made["status"], made["file"], made["frames"]) == ("made", "00000-sand-gargoyle-s0.mp4", 2)
    assert (failed["status"], failed["line"]) == ("failed", 2)
    assert events[-1] | {"page": ""} == {
        "event": "end",
        "items": 2,
        "made": 1,
        "there": 0,
        "failed": 1,
        "page": "",
    }


def test_lines_for_logs(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items(tmp_path, ["sand", {"prompt": "sea", "set": {"stepz": 1}}, "a star"])
    done = command(capsys, tmp_path, checkpoint, "--limit", 2)
    out = tmp_path / "out"
    assert (done.code, done.stdout) == (1, f"{out / '00000-sand-s0.mp4'}\n")
    said = done.stderr.splitlines()
    assert said[0] == "00000-sand-s0.mp4: rendering 2 frames"
    assert said[1].startswith("[1/2] 00000-sand-s0.mp4: 2 frames in ")
    assert said[2].startswith("error: line 2: 00001-sea-s1: setting unknown key")
    assert said[3].startswith("2 items: 1 made, 1 failed in ")
    assert (out / "index.html").is_file()
    quiet = command(capsys, tmp_path, checkpoint, "--limit", 2, "-q")
    assert quiet.stderr.splitlines()[-1] == "1 of 2 items failed"
    assert "failed before: setting unknown key 'stepz'" in quiet.stderr
    shard = command(capsys, tmp_path, checkpoint, "--shard", "2/3")
    assert shard.stdout == f"{out / '00002-a-star-s2.mp4'}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "3/3"], "--shard: expected I/N"),
        (["--engine", "magic"], "--engine: expected one of local, ray"),
        (["--format", "xml"], "--format: expected one of"),
        (["--at", "1:sea"], "--at: not here, a jobs file has its own"),
        (["--limit", "0"], "--limit"),
        (["--threads", "0"], "--threads"),
        (["--preview", "png"], "--preview"),
    ],
)
def test_bad_options(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    items(tmp_path, ["sand"])
    assert message in command(capsys, tmp_path, checkpoint, *options).error()
    assert not (tmp_path / "out").exists()


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "render", "--schema")
    assert done.code == 0
    assert json.loads(done.stdout)["title"] == "streamgen render job"
