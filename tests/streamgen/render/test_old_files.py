"""What the version of commit b036424 wrote opens: checkpoint, folders, records, timelines, motion files; its
snapshots are refused in one line. `tests/fixtures/b036424` was written by it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from streamgen import load_pipeline
from streamgen.motion.file import load_motion
from streamgen.pipeline import Pipeline
from streamgen.render.job_file import parse_jobs
from streamgen.render.records import job_key
from streamgen.stream.timeline import Timeline
from tests.batch_folder import files
from tests.command_line import ROOT, call

OLD = ROOT / "tests" / "fixtures" / "b036424"
MODEL = ["--model", OLD / "checkpoint"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.set_num_threads(1)
    return load_pipeline(OLD / "checkpoint")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As the fixture was written with."""
    torch.set_num_threads(1)


def pictures(video: Path) -> np.ndarray:
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_keys_are_what_they_were(pipeline: Pipeline) -> None:
    keys = [json.loads(line)["key"] for line in (OLD / "clips" / "manifest.jsonl").read_text().splitlines()]
    jobs = parse_jobs(OLD / "jobs.jsonl")
    assert [job_key(pipeline, job) for job in jobs] == keys
    names = ("00000-one-s3", "00001-two-s1")
    written = [json.loads((OLD / "clips" / f"{name}.json").read_text()) for name in names]
    for job, record in zip(jobs, written, strict=True):
        # but for the folder that the motion file lay in
        expected = record["job"]["shots"]
        found = job.to_json()["shots"]
        assert [shot | {"motion": 0} for shot in found] == [shot | {"motion": 0} for shot in expected]


def test_a_folder_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD / "clips", tmp_path / "clips")
    before = files(tmp_path / "clips")
    plan = call(capsys, "render", OLD / "jobs.jsonl", "-o", tmp_path / "clips", *MODEL, "--dry-run")
    assert [line.split("\t")[0] for line in plan.stdout.splitlines()] == ["done", "done"]
    done = call(capsys, "render", OLD / "jobs.jsonl", "-o", tmp_path / "clips", *MODEL)
    assert done.code == 0, done.stderr
    assert "2 items: 2 were there" in done.stderr
    assert done.stdout == ""
    after = files(tmp_path / "clips")
    assert {name: after[name] for name in before if name != "index.html"} == {
        name: digest for name, digest in before.items() if name != "index.html"
    }


@pytest.mark.parametrize("name", ["record.json", "timeline.json"])
def test_records_and_timelines_render_again(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "render", OLD / name, "-o", tmp_path / "again.mp4", *MODEL)
    assert done.code == 0, done.stderr
    record = json.loads((tmp_path / "again.json").read_text())
    if name == "record.json":
        # raw frames differ by rounding on other machines, and the encoder's settings have changed: 1.8 of 255
        # where it was tried; another seed's frames are 59 away
        first, second = (pictures(path).astype(int) for path in (OLD / "record.mp4", tmp_path / "again.mp4"))
        assert np.abs(first - second).mean() <= 5
    rows = [json.loads((OLD / name).read_text())]
    events = (rows[0].get("timeline") or rows[0])["events"]
    assert [e["frame"] for e in record["timeline"]["events"]] == [
        e["frame"] for e in events if e["frame"] < record["frames"]
    ]


def test_a_motion_file_opens() -> None:
    tracks = load_motion(OLD / "motion.json", 16)
    assert (tracks.num_tracks, tracks.num_frames, tracks.is_empty) == (1, 12, False)


def test_a_snapshot_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pipeline: Pipeline
) -> None:
    options = ["--continue-from", OLD / "stream.snapshot", *MODEL]
    line = call(capsys, "render", "-o", tmp_path / "a.mp4", *options).error()
    assert "expected version 2, found 1, which streamgen 0.1 reads" in line
    with_prompt = call(capsys, "render", "sea", "-o", tmp_path / "a.mp4", *options).error()
    assert "which streamgen 0.1 reads" in with_prompt


ROWS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "sand", "policy": "recache", "sink": "refresh"}, {"cache": None, "sink": "refresh"}),
    ({"prompt": "sand", "policy": "recache", "sink": "keep"}, {"cache": None, "sink": "keep"}),
    ({"prompt": "sand", "policy": "recache"}, {"cache": None, "sink": None}),
    ({"prompt": "sand", "policy": "keep", "sink": "refresh"}, {"cache": "keep"}),
    ({"prompt": "sand", "policy": "clear", "sink": "refresh"}, {"cache": "clear"}),
    ({"prompt": "sea", "policy": "clear"}, {"cache": None}),
    ({"motion": None}, {"lets_go_of_all": True, "cache": None}),
    ({"motion": {"pins": [[0.5, 0.5]], "frames": 4}}, {"lets_go_of_all": False, "cache": None}),
    ({"settings": {"steps": 3}}, {"settings": {"steps": 3}, "cache": None}),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_every_field_of_an_old_row_is_read(
    row: dict[str, Any], expected: dict[str, Any], pipeline: Pipeline
) -> None:
    opening = {"chunk": 0, "frame": 0, "seconds": 0.0, "prompt": "sea", "policy": "recache"}
    events = [opening, {"chunk": 2, "frame": 5, "seconds": 0.3125} | row]
    header = {"format": "streamgen-timeline", "version": 1, "fps": 16, "seed": 3, "start": None}
    timeline = Timeline.from_json(header | {"events": events})
    event = timeline.events[1].event
    assert event.prompt == row.get("prompt")
    assert {name: getattr(event, name) for name in expected} == expected
    session = pipeline.replay(timeline)
    receipts = session.pending
    for _ in range(4):
        next(session)
    assert [receipt.status for receipt in receipts] == ["applied"]
    assert receipts[0].frame == 5
