"""Motion that a clip does not show is noted: in the reporter's lines, in the record, in a dry run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamgen import load_pipeline
from streamgen.motion.reach import beyond
from streamgen.motion.tracks import TrackSet, drag
from streamgen.pipeline import Pipeline
from streamgen.render.job_file import parse_jobs
from streamgen.render.sources import check_job, open_job, open_timeline
from streamgen.stream.events import StreamEvent
from tests.command_line import call
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load_pipeline(checkpoint)


def pull(seconds: float, start: float = 0) -> dict[str, Any]:
    return {"from": [0.2, 0.2], "to": [0.8, 0.8], "seconds": seconds, "start": start}


CASES: dict[str, tuple[dict[str, Any], str | None]] = {
    "drag": ({"drags": [pull(2)]}, None),
    "long drag": ({"drags": [pull(6)]}, "goes on for 4 s after the clip's end"),
    "held drag": ({"drags": [pull(2) | {"hold": 1}]}, "goes on for 1 s after the clip's end"),
    "late drag": ({"drags": [pull(1, 3)]}, "begins 1 s behind the clip's end: nothing of it shows"),
    "drag at the end": ({"drags": [pull(1, 2)]}, "begins at the clip's end: nothing of it shows"),
    "two drags": (
        {"drags": [pull(1), pull(1, 3)]},
        "goes on for 2 s after the clip's end (1 of its 2 tracks begin behind it)",
    ),
    "path": ({"paths": [{"points": [[0, 0.1, 0.1], [2, 0.9, 0.9]]}]}, None),
    "long path": ({"paths": [{"points": [[0, 0.1, 0.1], [2.5, 0.9, 0.9]]}]}, "goes on for 0.5 s"),
    "late path": ({"paths": [{"points": [[2.5, 0.1, 0.1], [3, 0.9, 0.9]]}]}, "begins 0.5 s behind"),
    "camera": ({"camera": {"pan": [0.1, 0], "seconds": 2}}, None),
    "long camera": ({"camera": {"pan": [0.1, 0], "seconds": 3}}, "goes on for 1 s"),
    "late camera": ({"camera": {"pan": [0.1, 0], "seconds": 1, "start": 2.5}}, "begins 0.5 s behind"),
    "pins": ({"pins": [[0.5, 0.5]]}, None),
    "long pins": ({"pins": [[0.5, 0.5]], "frames": 64}, "goes on for 1.94 s"),
}


def parse(tmp_path: Path, row: dict[str, Any]) -> Any:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"prompt": "sea", "seconds": 2, "seed": 0} | row))
    return parse_jobs(tmp_path / "jobs.jsonl")[0]


@pytest.mark.parametrize("name", CASES)
def test_notes_of_each_kind_of_motion(name: str, tmp_path: Path, pipeline: Pipeline) -> None:
    motion, expected = CASES[name]
    rows = [{"motion": motion}, {"gestures": {"pull": motion}}]
    for row, what in zip(rows, ("motion of 0 s: ", "gesture 'pull' of 0 s: "), strict=True):
        job = parse(tmp_path, row)
        notes = check_job(pipeline, job)
        assert notes == open_job(pipeline, job, tmp_path / "a.mp4").notes
        assert len(notes) == (expected is not None)
        assert expected is None or notes[0].startswith(what + expected)


def test_shots_count_from_their_own_time(tmp_path: Path, pipeline: Pipeline) -> None:
    """Pins of a later shot last to the clip's end, though their chunk begins later than they were asked
    for; a motion that another one replaces is not cut off by the end.
    """
    shots: list[Any] = [{"at": 0.55, "motion": {"pins": [[0.5, 0.5]]}}]
    assert check_job(pipeline, parse(tmp_path, {"shots": shots})) == ()
    shots = [{"at": 1, "motion": {"drags": [pull(1.5)]}}]
    assert check_job(pipeline, parse(tmp_path, {"shots": shots})) == (
        "motion of 1 s: goes on for 0.5 s after the clip's end",
    )
    first = {"motion": {"drags": [pull(9)]}, "gestures": {"b": {"drags": [pull(9)]}}}
    shots = [{"at": 1, "motion": {"drags": [pull(0.5)]}}, {"at": 1.5, "gestures": {"b": None}}]
    assert check_job(pipeline, parse(tmp_path, first | {"shots": shots})) == ()


@pytest.mark.slow
def test_notes_stand_in_lines_record_and_dry_run(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "goes on for 4 s after the clip's end"
    (tmp_path / "pull.json").write_text(json.dumps({"drags": [pull(6)]}))
    options = ["--model", checkpoint, "--motion", tmp_path / "pull.json", "--seconds", 2]
    done = call(capsys, "render", "sea", "-o", tmp_path / "a.mp4", *options)
    assert f"note: motion of 0 s: {note}\n" in done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["notes"] == [f"motion of 0 s: {note}"]
    again = call(capsys, "render", tmp_path / "a.json", "-o", tmp_path / "b.mp4", "--model", checkpoint)
    assert f"note: motion of 0 s: {note}\n" in again.stderr
    longer = ["-o", tmp_path / "c.mp4", "--seconds", 7, "--model", checkpoint]
    assert "after the clip's end" not in call(capsys, "render", tmp_path / "a.json", *longer).stderr

    rows = [
        {"prompt": "sea", "motion": "pull.json"},
        {"prompt": "sand"},
        {"prompt": "a", "motion": "pull.json"},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    jobs = ["render", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--model", checkpoint, "--seconds", 2]
    plan = call(capsys, *jobs, "--dry-run")
    noted = [line for line in plan.stderr.splitlines() if line.startswith("note:")]
    assert noted == [
        f"note: line 1: 00000-sea-s0: motion of 0 s: {note}",
        f"note: line 3: 00002-a-s2: motion of 0 s: {note}",
    ]
    told = [json.loads(line) for line in call(capsys, *jobs, "--dry-run", "--json").stdout.splitlines()]
    assert [event.get("notes") for event in told[:3]] == [[f"motion of 0 s: {note}"], None, told[0]["notes"]]
    made = call(capsys, *jobs)
    assert f"note: 00000-sea-s0: motion of 0 s: {note}\n" in made.stderr
    assert f"note: 00002-a-s2: motion of 0 s: {note}\n" in made.stderr


def test_a_timeline_of_chunks_gets_no_note_for_pins(tmp_path: Path, pipeline: Pipeline) -> None:
    """A recorded event began at its chunk, up to a chunk after it was asked for."""
    job = parse(tmp_path, {"shots": [{"at": 0.55, "motion": {"pins": [[0.5, 0.5]]}}]})
    clip = open_job(pipeline, job, tmp_path / "a.mp4")
    while clip.session.next_frame < 32:
        next(clip.session)
    file = tmp_path / "a.timeline.json"
    file.write_text(clip.session.timeline.dumps())
    assert open_timeline(pipeline, file, tmp_path / "b.mp4", 2, None, None).notes == ()
    late = open_timeline(pipeline, file, tmp_path / "b.mp4", 1, None, None)
    assert [note.split(":")[1] for note in late.notes] == [" goes on for 0.94 s after the clip's end"]


def test_letting_go_of_all_ends_what_was_begun(tmp_path: Path, pipeline: Pipeline) -> None:
    session = pipeline.open("sea", motion=drag((0.2, 0.2), (0.8, 0.8), 200))
    session.submit(StreamEvent(motion=TrackSet.empty(0)), at_frame=9)
    for _ in range(5):
        next(session)
    file = tmp_path / "a.timeline.json"
    file.write_text(session.timeline.dumps())
    assert open_timeline(pipeline, file, tmp_path / "b.mp4", 2, None, None).notes == ()


def test_beyond_counts_what_is_said_alone() -> None:
    tracks = drag((0.2, 0.2), (0.8, 0.8), 10)
    assert beyond(tracks.slice(0, 100), 0, 16, 16) is None
    assert beyond(TrackSet.empty(100), 0, 16, 16) is None
    assert beyond(tracks, 8, 16, 16) == "goes on for 0.06 s after the clip's end"
