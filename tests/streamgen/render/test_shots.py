"""What a shot may change besides its prompt: gestures and the cache, through every door."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamgen import StreamEvent, load_pipeline
from streamgen.errors import InputError
from streamgen.motion.tracks import pins
from streamgen.pipeline import Pipeline
from streamgen.render.clip import write_clip
from streamgen.render.job import RenderJob, job_from_command_line
from streamgen.render.job_file import parse_jobs
from streamgen.render.records import job_key
from streamgen.render.shots import MAX_GESTURES, MAX_NAME, Shot
from streamgen.render.sources import check_job, open_job
from streamgen.stream import events
from tests.batch_folder import items, lines, run
from tests.command_line import call
from tests.tiny_checkpoints import write_checkpoint

PIN = {"pins": [[0.5, 0.5]]}
DRAG = {"drags": [{"from": [0.2, 0.2], "to": [0.8, 0.8], "seconds": 0.5}]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load_pipeline(checkpoint)


def parse(tmp_path: Path, *shots: Any, **more: Any) -> RenderJob:
    file = tmp_path / "jobs.jsonl"
    row = {"prompt": "sea", "seconds": 2, "seed": 0} | more | ({"shots": list(shots)} if shots else {})
    file.write_text(json.dumps(row))
    return parse_jobs(file)[0]


def frames(session: Any, chunks: int) -> torch.Tensor:
    return torch.cat([next(session).frames for _ in range(chunks)])


def test_the_limits_are_those_of_events() -> None:
    assert (MAX_GESTURES, MAX_NAME) == (events.MAX_GESTURES, events.MAX_NAME)


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "pin.json").write_text(json.dumps(PIN))
    row = {"prompt": "sea", "cache": "keep", "gestures": {"my pin": "pin.json"}}
    expected = (Shot(0.0, "sea", None, "keep", {"my pin": str(tmp_path / "pin.json")}),)
    texts = {
        "a.jsonl": json.dumps(row),
        "b.jsonl": json.dumps({"shots": [row]}),
        "c.jsonl": json.dumps({"policy": "keep", "shots": [row | {"at": 0}]}),
        "a.yaml": "prompt: sea\ncache: keep\ngestures: {my pin: pin.json}\n",
        "a.csv": "prompt,cache,gestures.my pin\nsea,keep,pin.json\n",
        "b.csv": "prompt,policy,gestures.my pin\nsea,keep,pin.json\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        (job,) = parse_jobs(tmp_path / name)
        assert job.shots == expected, name
        (tmp_path / "again.jsonl").write_text(json.dumps(job.to_json()))
        assert parse_jobs(tmp_path / "again.jsonl") == [job]
    assert Path(str(job.with_absolute_paths().shots[0].gestures["my pin"])).is_absolute()  # type: ignore[index]


def test_two_names_of_one_field_are_one_job(tmp_path: Path, pipeline: Pipeline) -> None:
    new, old = (parse(tmp_path, {"at": 1, "prompt": "sand", name: "clear"}) for name in ("cache", "policy"))
    assert new == old
    assert new.to_json()["shots"][1] == {"at": 1.0, "prompt": "sand", "policy": "clear"}
    keys = {job_key(pipeline, parse(tmp_path, {"at": 1, "cache": cache})) for cache in ("clear", "recache")}
    assert len(keys) == 2


def test_the_key_has_what_gestures_hold(tmp_path: Path, pipeline: Pipeline) -> None:
    (tmp_path / "pin.json").write_text(json.dumps(PIN))
    job = parse(tmp_path, {"at": 1, "gestures": {"pin": "pin.json"}}, {"at": 1.5, "gestures": {"pin": None}})
    key = job_key(pipeline, job)
    (tmp_path / "pin.json").write_text(json.dumps({"pins": [[0.5, 0.25]]}))
    assert job_key(pipeline, job) != key
    assert job_key(pipeline, parse(tmp_path, {"at": 1, "gestures": {"nip": "pin.json"}})) != key


def test_a_job_with_gestures_is_a_session_with_gestures(tmp_path: Path, pipeline: Pipeline) -> None:
    """A drag keeps the pin; the pin is let go of; the cache is cleared under unchanged words."""
    job = parse(
        tmp_path,
        {"at": 0.5, "motion": DRAG},
        {"at": 1, "gestures": {"pin": None}, "cache": "clear"},
        gestures={"pin": PIN},
    )
    check_job(pipeline, job)
    clip = open_job(pipeline, job, tmp_path / "a.mp4")
    names = []
    while clip.session.next_frame < 32:
        next(clip.session)
        names.append([gesture.name for gesture in clip.session.controls.gestures])
    assert names[0] == ["pin"]
    assert ["pin", "motion"] in names
    assert names[-1] in (["motion"], [])
    applied = clip.session.timeline.events
    assert [entry.event.cache for entry in applied] == [None, None, "clear"]
    assert clip.session.state.latents.scene != (0, 0)
    session = pipeline.open("sea", 0, gestures={"pin": pins([(0.5, 0.5)], 32)})
    again = open_job(pipeline, job, tmp_path / "b.mp4")
    assert torch.equal(frames(session, 3), frames(again.session, 3))


def test_cache_alone_recaches_or_clears(tmp_path: Path, pipeline: Pipeline) -> None:
    plain = frames(open_job(pipeline, parse(tmp_path), tmp_path / "a.mp4").session, 8)
    job = parse(tmp_path, {"at": 1, "cache": "clear"})
    cleared = frames(open_job(pipeline, job, tmp_path / "a.mp4").session, 8)
    assert torch.equal(plain[:17], cleared[:17])
    assert not torch.equal(plain[17:21], cleared[17:21])


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ([{"at": 1}], "a shot needs a prompt, a motion, gestures or a cache action"),
        ([{"at": 1, "cache": "kep"}], r"shots\[0\].cache: expected one of recache, keep, clear, found 'kep'"),
        ([{"at": 1, "cache": 3}], r"shots\[0\].cache: expected one of"),
        ([{"at": 1, "cache": "rebuild"}], r"shots\[0\].cache: expected one of"),
        ([{"at": 1, "cache": "keep", "policy": "clear"}], "keep and policy clear are two values"),
        ([{"at": 1, "cache": "keep"}, {"at": 1, "policy": "clear"}], "there are keep and clear at 1 s"),
        ([{"at": 1, "gestures": {}}], r"shots\[0\].gestures: expected name: motion"),
        ([{"at": 1, "gestures": ["pin"]}], r"shots\[0\].gestures: expected name: motion"),
        ([{"at": 1, "gestures": {"": PIN}}], "expected names of 1 to 64 printable"),
        ([{"at": 1, "gestures": {"a\nb": PIN}}], "expected names of 1 to 64 printable"),
        ([{"at": 1, "gestures": {"x" * 65: PIN}}], "expected names of 1 to 64 printable"),
        ([{"at": 1, "gestures": {str(i): PIN for i in range(257)}}], "expected at most 256, found 257"),
        ([{"at": 1, "gestures": {"pin": 3}}], r"gestures\['pin'\]: expected a path, found 3"),
        ([{"at": 1, "gestures": {"pin": "nowhere.json"}}], r"gestures\['pin'\]: no such file"),
        ([{"at": 1, "gestures": {"pin": None}}], "'pin': nothing is in force to let go of"),
        ([{"at": 1, "gestures": {"pin": PIN}}, {"at": 1.5, "gestures": {"pim": None}}], "did you mean 'pin'"),
        ([{"at": 0.5, "gestures": {"a": PIN}}, *[{"at": at, "gestures": {"a": None}} for at in (1, 1.5)]],
         "'a': nothing is in force"),
        ([{"at": 1, "motion": PIN, "gestures": {"motion": PIN}}], "'motion' is the shot's own motion"),
        ([{"at": 1, "gestures": {"a": PIN}}, {"at": 1, "gestures": {"a": DRAG}}], "two of 'a' at 1 s"),
    ],
)  # fmt: skip
def test_bad_shots_are_one_line(
    shots: list[Any], message: str, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(tmp_path, *shots)
    assert "\n" not in str(caught.value)
    # the same through the command, as JSONL and as YAML, which holds any JSON
    for name in ("jobs.jsonl", "jobs.yaml"):
        (tmp_path / name).write_text((tmp_path / "jobs.jsonl").read_text())
        done = call(capsys, "render", tmp_path / name, "-o", tmp_path / "out", "--model", checkpoint)
        assert "line 1: " in done.error()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,cache\nsea,kep\n", "line 2: cache: expected one of"),
        ("prompt,cache,policy\nsea,keep,clear\n", "line 2: cache: keep and policy clear"),
        ("prompt,gestures.pin\nsea,nowhere.json\n", r"line 2: gestures\['pin'\]: no such file"),
        ("prompt,gestures\nsea,nowhere.json\n", "line 1: unknown key 'gestures'"),
        ("prompt,gesture.pin\nsea,x\n", "line 1: unknown key 'gesture.pin'"),
    ],
)
def test_bad_tables_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        parse_jobs(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache", "kep"], "--cache: expected one of recache, keep, clear, found 'kep'"),
        (["--gesture", "pin"], "--gesture: expected NAME=FILE, found 'pin'"),
        (["--gesture", "=x"], "--gesture: expected NAME=FILE"),
        (["--gesture", "pin=nowhere.json"], "--gesture['pin']: no such file: nowhere.json"),
        (["--gesture", "pin=pin.json", "--gesture", "pin=pin.json"], "--gesture: pin is given twice"),
        (["--gesture", "pin="], "--gesture: gesture 'pin': nothing is in force to let go of"),
        (["--gesture", "motion=pin.json", "--motion", "pin.json"], "is the shot's own motion"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], message: str, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("pin.json").write_text(json.dumps(PIN))
    done = call(capsys, "render", "sea", "-o", "a.mp4", "--model", checkpoint, *options)
    assert message in done.error()
    Path("jobs.txt").write_text("sea\n")
    done = call(capsys, "render", "jobs.txt", "-o", "out", "--model", checkpoint, *options[:2])
    assert f"{options[0]}: not here, a jobs file has its own" in done.error()


def test_gestures_and_cache_on_the_command_line(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pin.json").write_text(json.dumps(PIN))
    job = job_from_command_line(
        "sea", 2, 0, ["1:sand"], cache="clear", gestures=[f"a pin={tmp_path / 'pin.json'}"]
    )
    assert job.shots[0] == Shot(0.0, "sea", gestures={"a pin": str(tmp_path / "pin.json")})
    assert job.shots[1] == Shot(1.0, "sand", cache="clear")
    state, model = tmp_path / "state", ["--model", checkpoint, "--seconds", "1"]
    # pins last as long as the clip; these are told how long, and go on in the next one
    (tmp_path / "pin.json").write_text(json.dumps(PIN | {"frames": 320}))
    pin = ["--gesture", f"a pin={tmp_path / 'pin.json'}"]
    first = ["-o", tmp_path / "a.mp4", "--save-state", state]
    done = call(capsys, "render", "sea", *first, *pin, "--at", "0.5:sand", "--cache", "keep", *model)
    assert done.code == 0, done.stderr
    events_ = json.loads((tmp_path / "a.json").read_text())["timeline"]["events"]
    assert (list(events_[0]["gestures"]), events_[1]["cache"]) == (["a pin"], "keep")
    more = ["render", "-o", tmp_path / "b.mp4", "--continue-from", state, *model]
    done = call(capsys, *more, "--gesture", "a pin=", "--cache", "clear")
    assert done.code == 0, done.stderr
    last = json.loads((tmp_path / "b.json").read_text())["timeline"]["events"][-1]
    assert (last["gestures"], last["cache"], "prompt" in last) == ({"a pin": None}, "clear", False)
    refused = call(capsys, *more, "--gesture", "a pim=").error()
    assert "shots[0].gestures: unknown gesture 'a pim' (did you mean 'a pin'?)" in refused


def test_a_gesture_that_is_over_cannot_be_let_go_of(tmp_path: Path, pipeline: Pipeline) -> None:
    """Whether it is over by then depends on the model's chunks; the job fails before its first frame."""
    drag = {"drags": [{"from": [0.2, 0.2], "to": [0.8, 0.8], "seconds": 0.5}]}
    row = {"prompt": "sea", "seconds": 2, "shots": [{"at": 1, "gestures": {"pull": None}}]}
    job = parse(tmp_path, *row["shots"], gestures={"pull": drag})  # type: ignore[misc]
    message = r"shots\[1\].gestures: gesture 'pull': nothing is in force to let go of"
    for check in (lambda: check_job(pipeline, job), lambda: open_job(pipeline, job, tmp_path / "a.mp4")):
        with pytest.raises(InputError, match=message):
            check()
    assert run(pipeline, items(tmp_path, [row | {"gestures": {"pull": drag}}]), tmp_path / "out") == [
        "failed"
    ]
    assert "nothing is in force to let go of" in lines(tmp_path / "out")[0]["error"]
    # begun again later it is in force
    again = [{"at": 0.9, "gestures": {"pull": drag}}, *row["shots"]]  # type: ignore[misc]
    check_job(pipeline, parse(tmp_path, *again, gestures={"pull": drag}))


@pytest.mark.parametrize("plan", [(1, 1, 1, 3), (3, 1, 1, 3), (3, 3, 3, 3)])
@pytest.mark.parametrize("at", [0.6, 0.75, 0.9, 1.05, 1.2])
def test_what_is_in_force_is_counted_as_the_stream_does(
    plan: tuple[int, int, int, int], at: float, tmp_path: Path
) -> None:
    """Behind a clear chunks count anew: what the check says at opening is what the stream comes to."""
    from models.context import ChunkPlan

    model = load_pipeline(write_checkpoint(tmp_path / "model", plan=ChunkPlan(*plan), steps=1))
    pull = {"drags": [{"from": [0.2, 0.2], "to": [0.8, 0.8], "seconds": 0.5}]}
    changes: list[Any] = [{"at": 0.1, "cache": "clear"}, {"at": 0.4, "gestures": {"pull": pull}}]
    job = parse(tmp_path, *changes, {"at": at, "gestures": {"pull": None}})
    try:
        check_job(model, job)
        fits = True
    except InputError:
        fits = False
    session = model.open("sea")
    asked = [StreamEvent(cache="clear"), *(change.event() for change in loaded(model, job)[2:])]
    receipts = [session.submit(e, f) for e, f in zip(asked, (2, 7, round(at * 16 + 0.49)), strict=True)]
    while session.next_frame < 32:
        next(session)
    assert [r.status for r in receipts] == ["applied", "applied", "applied" if fits else "refused"]


def loaded(model: Pipeline, job: RenderJob) -> list[Any]:
    from streamgen.render.changes.job_changes import changes_of

    return changes_of(model, job, 32)


def test_a_written_clip_has_its_gestures(tmp_path: Path, pipeline: Pipeline) -> None:
    """In the record's job and in its timeline, from which it is made again."""
    job = parse(tmp_path, {"at": 1, "gestures": {"pin": None}}, gestures={"pin": PIN})
    record = write_clip(open_job(pipeline, job, tmp_path / "a.mp4"))
    assert record["job"]["shots"][1]["gestures"] == {"pin": None}
    assert [list(e.get("gestures", {})) for e in record["timeline"]["events"]] == [["pin"], ["pin"]]
    from streamgen.render.sources import open_timeline

    again = open_timeline(pipeline, tmp_path / "a.json", tmp_path / "b.mp4", None, None, None)
    assert write_clip(again)["replay"]["equal"] is True


LONG = "x" * 65
EVENTS: list[tuple[dict[str, Any], str]] = [
    ({"cache": "kep"}, "cache: expected one of recache, keep, clear, rebuild, found 'kep'"),
    ({"policy": "kep"}, "cache: expected one of"),
    ({"cache": "keep", "policy": "clear"}, "cache 'keep' and policy 'clear' are the same field"),
    ({"gestures": {LONG: None}}, "expected a name of 1 to 64 printable characters"),
    ({"gestures": {"": None}}, "expected a name of 1 to 64 printable characters"),
    ({"gestures": {3: None}}, "expected a name of 1 to 64 printable characters"),
    ({"gestures": dict.fromkeys(map(str, range(257)))}, "expected at most 256 in one event"),
    ({"gestures": {}}, "expected a prompt, motion, settings or a cache action"),
]


@pytest.mark.parametrize(("fields", "message"), EVENTS)
def test_bad_events_are_one_line_in_python(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        StreamEvent(**fields)
    assert "\n" not in str(caught.value)


def test_an_opening_lets_go_of_nothing(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="gesture 'pin': nothing is in force to let go of"):
        pipeline.open("sea", gestures={"pin": None})
    session = pipeline.open("sea", gestures={"pin": pins([(0.5, 0.5)], 99)})
    receipt = session.submit(StreamEvent(gestures={"pim": None}))
    next(session)
    assert (receipt.status, "did you mean 'pin'" in str(receipt.reason)) == ("refused", True)


ROWS: list[tuple[dict[str, Any], str]] = [
    ({"cache": "kep"}, "cache: expected one of"),
    ({"gestures": {"pin": 3}}, "incomplete or damaged"),
    ({"gestures": {LONG: None}}, "expected a name of 1 to 64"),
    ({"gestures": {"pin": {"pins": "all"}}}, "pins: expected a list"),
    ({"gesture": {}}, "unknown key 'gesture'"),
]


@pytest.mark.parametrize(("row", "message"), ROWS)
def test_bad_timeline_rows_are_one_line(
    row: dict[str, Any], message: str, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opening = {"chunk": 0, "frame": 0, "prompt": "sea"}
    events_ = [opening, {"chunk": 1, "frame": 1, "prompt": "sand"} | row]
    content = {"format": "streamgen-timeline", "fps": 16, "seed": 0, "events": events_}
    (tmp_path / "a.json").write_text(json.dumps(content))
    line = call(
        capsys, "render", tmp_path / "a.json", "-o", tmp_path / "a.mp4", "--model", checkpoint
    ).error()
    assert message in line
    own = ["render", tmp_path / "a.json", "-o", tmp_path / "a.mp4", "--model", checkpoint]
    for option in (["--cache", "keep"], ["--gesture", "a=b"]):
        assert f"{option[0]}: not here, a timeline has its own" in call(capsys, *own, *option).error()
