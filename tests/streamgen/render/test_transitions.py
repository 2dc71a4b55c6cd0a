"""Words that come over some time, and blends, as jobs and on the command line say them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from streamgen import StreamEvent, load_pipeline
from streamgen.errors import InputError
from streamgen.interpolate import Way
from streamgen.pipeline import Pipeline
from streamgen.render import shots
from streamgen.render.clip import write_clip
from streamgen.render.job import RenderJob, job_from_command_line
from streamgen.render.job_file import parse_jobs
from streamgen.render.schema import job_schema
from streamgen.render.shots import Shot
from streamgen.render.sources import job_key, open_job, open_timeline
from streamgen.stream import prompts
from tests.tiny_checkpoints import write_checkpoint

BLEND = [{"prompt": "a red circle", "weight": 0.75}, {"prompt": "the sea", "weight": 0.25}]
PAIRS = (("a red circle", 0.75), ("the sea", 0.25))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    torch.set_num_threads(1)
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1))


def parse(tmp_path: Path, row: dict[str, Any]) -> RenderJob:
    file = tmp_path / "jobs.jsonl"
    file.write_text(json.dumps({"seconds": 2, "seed": 0} | row))
    return parse_jobs(file)[0]


def test_limits_are_those_of_the_stream() -> None:
    here = (shots.MAX_BLEND, shots.MAX_WEIGHT, shots.MAX_OVER_SECONDS, shots.MAX_OVER_CHUNKS, shots.WAYS)
    there = (prompts.MAX_BLEND, prompts.MAX_WEIGHT, prompts.MAX_OVER_SECONDS, prompts.MAX_OVER_CHUNKS)
    assert here == (*there, Way.__args__)


def test_all_forms_say_the_same(tmp_path: Path) -> None:
    expected = Shot(1.0, None, blend=PAIRS, over={"seconds": 0.5})
    rows: list[dict[str, Any]] = [
        {"prompt": "sea", "shots": [{"at": 1, "blend": BLEND, "over": 0.5}]},
        {"prompt": "sea", "shots": [{"at": 1, "blend": dict(PAIRS), "over": {"seconds": 0.5}}]},
    ]
    for row in rows:
        Draft202012Validator(job_schema()).validate(row)
        assert parse(tmp_path, row).shots[1] == expected
    at = ["1-1.5:.75*a red circle + .25*the sea"]
    assert job_from_command_line("sea", 2, 0, at).shots[1] == expected
    (tmp_path / "jobs.csv").write_text(f"prompt,seconds,seed,at\nsea,2,0,{at[0]}\n")
    assert parse_jobs(tmp_path / "jobs.csv")[0].shots[1] == expected
    plain = job_from_command_line("sea", 2, 0, ["1s-1.5s:2 * 3 is + six"]).shots[1]
    assert (plain.prompt, plain.over) == ("2 * 3 is + six", {"seconds": 0.5})
    again = parse(tmp_path, job_from_command_line("sea", 2, 0, at).to_json())
    assert again.shots[1] == expected


def test_the_key_knows_both_and_old_jobs_keep_theirs(tmp_path: Path, pipeline: Pipeline) -> None:
    row: dict[str, Any] = {"prompt": "sea", "shots": [{"at": 1, "prompt": "a red circle"}]}
    old = parse(tmp_path, row)
    assert "over" not in json.dumps(old.to_json())
    keys = {job_key(pipeline, old)}
    for change in ({"over": 0.5}, {"over": {"chunks": 2}}, {"over": {"seconds": 0.5, "every": 2}}):
        row["shots"][0] = {"at": 1, "prompt": "a red circle"} | change
        keys.add(job_key(pipeline, parse(tmp_path, row)))
    row["shots"][0] = {"at": 1, "blend": BLEND}
    keys.add(job_key(pipeline, parse(tmp_path, row)))
    assert len(keys) == 5


def test_a_job_is_the_session_it_says_and_its_record_the_job(tmp_path: Path, pipeline: Pipeline) -> None:
    changes = [{"at": 0.5, "prompt": "a blue star", "over": {"chunks": 3, "every": 2}}]
    job = parse(tmp_path, {"blend": BLEND, "seconds": 1.5, "shots": changes})
    session = pipeline.open(blend=PAIRS, seed=0)
    over = {"chunks": 3, "every": 2}
    session.submit(StreamEvent(prompt="a blue star", over=over), round(0.5 * pipeline.geometry.fps))
    clip = open_job(pipeline, job, tmp_path / "one.mp4")
    for _ in range(5):
        assert torch.equal(next(clip.session).frames, next(session).frames)
    write_clip(open_job(pipeline, job, tmp_path / "one.mp4"))
    record = json.loads((tmp_path / "one.json").read_text())
    told = [row for row in record["timeline"]["events"] if "over" in row]
    assert [row["over"] for row in told] == [{"chunks": 3, "way": "linear", "every": 2}]
    assert record["timeline"]["events"][0]["blend"] == BLEND
    write_clip(open_timeline(pipeline, tmp_path / "one.json", tmp_path / "two.mp4", None, None, None))
    assert json.loads((tmp_path / "two.json").read_text())["sha256"] == record["sha256"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "sea", "blend": BLEND}, "blend: expected a prompt or a blend, found both"),
        ({"blend": []}, "blend: expected 1 to 16 prompts with weights, found 0"),
        (
            {"blend": {f"prompt {i}": 1 for i in range(100)}},
            "expected 1 to 16 prompts with weights, found 100",
        ),
        ({"blend": {"sea": 0}}, "blend: expected a weight above 0, found only 0"),
        ({"blend": {"sea": -1}}, "blend[0].weight: expected at least 0 and at most 1e+06, found -1"),
        ({"blend": {"sea": 1e308, "sand": 1e308}}, "blend[0].weight: expected at least 0 and at most 1e+06"),
        ({"blend": {"sea": "much"}}, "blend[0].weight: expected a number"),
        ({"blend": [{"weight": 1}]}, "blend[0].prompt: expected text"),
        ({"blend": [{"prompt": "sea", "part": 1}]}, "blend[0]: unknown key 'part'"),
        ({"prompt": "sea", "over": 1}, "over: the first words of a stream"),
        ({"prompt": "sea", "shots": [{"at": 1, "cache": "recache", "over": 1}]}, "over: expected new words"),
        ({"prompt": "sea", "shots": [{"at": 1, "prompt": "a", "over": 0}]}, "over: expected seconds above 0"),
        (
            {"prompt": "sea", "shots": [{"at": 1, "prompt": "a", "over": {}}]},
            "seconds or chunks, one of them",
        ),
        (
            {"prompt": "sea", "shots": [{"at": 1, "prompt": "a", "over": {"chunks": 0}}]},
            "over.chunks: expected",
        ),
        (
            {"prompt": "sea", "shots": [{"at": 1, "prompt": "a", "over": {"chunks": 1, "way": "x"}}]},
            "over.way",
        ),
        (
            {"prompt": "sea", "shots": [{"at": 1, "prompt": "a", "over": 1, "cache": "clear"}]},
            "leaves nothing that words could change over",
        ),
    ],
)
def test_bad_rows_are_one_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as found:
        parse(tmp_path, row)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("at", "message"),
    [("4-3:sea", "an end after 4 s, found 3"), ("4-x:sea", "expected a number"), ("-1:a", "-1")],
)
def test_bad_options_are_one_line(at: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        job_from_command_line("sea", 8, 0, [at])
