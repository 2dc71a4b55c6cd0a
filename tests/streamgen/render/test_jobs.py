"""Render jobs from files and from the command line."""

import io
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from streamgen.errors import InputError
from streamgen.render.items import Shard, items_of, slug
from streamgen.render.job import JOB_KEYS, job_from_command_line, parse_settings
from streamgen.render.job_file import parse_jobs
from streamgen.render.schema import job_schema
from streamgen.render.shots import SHOT_KEYS, Shot


def parse(tmp_path: Path, name: str, text: str) -> list[Any]:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return parse_jobs(file, seconds=8, seed=100)


def row(**changes: Any) -> str:
    return json.dumps({"prompt": "a red circle"} | changes)


def test_txt_has_a_prompt_a_line(tmp_path: Path) -> None:
    jobs = parse(tmp_path, "a.txt", "\ufeffa red circle\n\n  # no prompt\n  a blue  star \r\n")
    assert [job.shots for job in jobs] == [(Shot(0.0, "a red circle"),), (Shot(0.0, "a blue star"),)]
    assert [job.seed for job in jobs] == [100, 101]
    assert [item.name for item in items_of(jobs)] == ["00000-a-red-circle-s100", "00001-a-blue-star-s101"]
    assert [job.line for job in jobs] == [1, 4]
    assert jobs[0].seconds == 8


def test_jsonl_csv_and_yaml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "drag.json").write_text("{}")
    shots = [{"at": 0, "prompt": "a red circle"}, {"at": 3.5, "prompt": "a blue star", "policy": "keep"}]
    shots.append({"at": 4, "motion": "drag.json"})
    job = {"id": "one", "seconds": 6, "seed": 3, "shots": shots, "set": {"steps": 4}}
    (first,) = parse(tmp_path, "a.jsonl", json.dumps(job) + "\n\n")
    assert first.shots[1] == Shot(3.5, "a blue star", None, "keep")
    assert first.shots[2].motion == str(tmp_path / "drag.json")
    assert first.set == {"steps": 4}
    text = "- id: one\n  seconds: 6\n  seed: 3\n  set: {steps: 4}\n  shots:\n" + "".join(
        f"    - {json.dumps(shot)}\n" for shot in shots
    )
    assert parse(tmp_path, "list.yaml", text) == [first]
    documents = f"---\n{json.dumps(job)}\n---\na green square\n---\nprompt: a white ring\nid: 7\n"
    three = parse(tmp_path, "documents.yml", documents)
    assert three[0] == first
    assert three[1].shots == (Shot(0.0, "a green square"),)
    assert (three[2].id, three[2].seed) == ("7", 102)
    table = (
        'id,seconds,seed,prompt,at,set.steps\none,6,3,a red circle,"3.5:a blue, star|5s:sand",4\n,,,plain,,\n'
    )
    one, plain = parse(tmp_path, "a.csv", table)
    assert one.shots == (Shot(0.0, "a red circle"), Shot(3.5, "a blue, star"), Shot(5.0, "sand"))
    assert one.set == {"steps": 4}
    assert (plain.seconds, plain.seed, plain.set) == (8, 101, {})


def test_a_job_survives_its_own_json(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    shots = [{"at": 2, "motion": {"pins": [[0.5, 0.5]]}}]
    (job,) = parse(tmp_path, "a.jsonl", row(id="x", image="a.png", shots=shots))
    assert [shot.at_seconds for shot in job.shots] == [0, 2]
    assert parse(tmp_path, "b.jsonl", json.dumps(job.to_json())) == [job]


def test_prompt_and_motion_at_one_time_are_one_shot(tmp_path: Path) -> None:
    shots = [{"at": 2, "prompt": "sand"}, {"at": 2, "motion": {"pins": [[0.5, 0.5]]}}]
    (job,) = parse(tmp_path, "a.jsonl", row(shots=shots))
    assert job.shots[1] == Shot(2.0, "sand", {"pins": [[0.5, 0.5]]})


def shots(*times: Any) -> str:
    return row(shots=[{"at": at, "prompt": f"prompt {index}"} for index, at in enumerate(times)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (row(prompt=""), "line 1: prompt: is empty"),
        (row(prompt=" \n"), "line 1: prompt: is empty"),
        (row(prompt="x" * 10_001), "prompt: has 10001 characters, at most 10000"),
        (row(prompt=7), "prompt: expected text"),
        (row(prompt="a\x00b"), "prompt: holds control characters"),
        ('{"seconds": 4}', "prompt: missing"),
        (row(seconds=0), "seconds: expected above 0"),
        (row(seconds=-3), "seconds: expected above 0"),
        (row(seconds=90_000), "at most 86400 .24 hours., found 90000"),
        (row(seconds=float("nan")), "seconds: expected a finite number"),
        (row(seconds=10**400), "seconds: expected a number"),
        (row(seconds=True), "seconds: expected a number"),
        (row(seed=-1), "seed: expected a whole number"),
        (row(seed=1.5), "seed: expected a whole number"),
        (row(id=[]), "id: expected a name"),
        (row(id="x" * 3000), "id: has 3000 characters"),
        (row(frames=0), "frames: expected a whole number from 1"),
        (row(frames=8.0), "frames: expected a whole number"),
        (row(frames=8, seconds=1), "seconds, frames: expected one of them"),
        (row(samples=0), "samples: expected a whole number from 1"),
        (row(samples=3, seed=2**63 - 2), "go beyond 2.63 - 1"),
        (row(size="64"), "size: expected .WIDTHxHEIGHT."),
        (row(size=[64, 0]), "size: expected a whole number from 1"),
        (row(set=3), "set: expected key: value"),
        (row(image="nowhere.png"), "image: no such file: .*nowhere.png"),
        (row(motion="nowhere.json"), "motion: no such file"),
        (row(sead=3), "unknown key 'sead' .did you mean 'seed'"),
        (row(shots=[]), "shots: expected a list"),
        (row(shots=[{"at": 1, "promt": "x"}]), r"shots\[0\]: unknown key 'promt' .did you mean 'prompt'"),
        (row(shots=[{"at": 1}]), r"shots\[0\].prompt: a shot needs a prompt, a motion, gestures or"),
        (row(shots=[{"at": 1, "policy": "keep", "prompt": ""}]), r"shots\[0\].prompt: is empty"),
        (
            row(shots=[{"at": 1, "policy": "kep", "prompt": "x"}]),
            "policy: expected one of recache, keep, clear",
        ),
        (row(shots=[{"prompt": "x"}]), r"shots\[0\].at: missing"),
        (shots(4, 3), r"shots\[1\].at: times must be in order, 3 comes after 4"),
        (shots(4, 4), r"shots\[1\].prompt: there are two prompts at 4 s"),
        (shots(0), "there are two prompts at 0 s"),
        (shots(8), r"shots\[0\].at: expected from 0 to before the end .8 s., found 8"),
        (shots(-1), r"shots\[0\].at: expected from 0"),
        (shots(float("nan")), r"shots\[0\].at: expected a finite"),
        ('{"shots": [{"at": 1, "prompt": "x"}]}', r"shots\[0\].at: the first shot must be at 0"),
        ('{"shots": [{"at": 0, "motion": {}}]}', "prompt: the first shot has none"),
        ('{"seed": 1, "seed": 2, "prompt": "x"}', "line 1: seed is given twice"),
        ('{"seed": ' + "9" * 5000 + "}", "line 1: "),
        ("{", "line 1: not valid JSON"),
        ("[1]", "line 1: a job: expected key: value pairs"),
        (row() + "\n" + row(seconds=0), "line 2: seconds"),
        (row(id="A/b") + "\n" + row(id="a/B"), "line 2: id: 'a/B' is taken by line 1"),
        ("\n\n", "no jobs in it"),
    ],
)
def test_bad_rows_name_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(tmp_path, "jobs.jsonl", text)
    assert str(caught.value).startswith(str(tmp_path / "jobs.jsonl"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "promt\nx\n", "line 1: unknown key 'promt' .did you mean 'prompt'"),
        ("a.csv", "prompt,seed\nx\n", "line 2: expected 2 cells, found 1"),
        ("a.csv", "prompt,seed\nx,y\n", "line 2: seed: expected a whole number"),
        ("a.csv", "prompt,seed\n,3\n", "line 2: prompt: is empty"),
        ("a.csv", "prompt,at\nx,three:y\n", "line 2: at: expected a number of seconds"),
        ("a.csv", "prompt,prompt\nx,y\n", "a column is given twice"),
        ("a.csv", "", "no jobs in it"),
        ("a.yaml", "a: [", "line 1: not valid YAML"),
        ("a.yaml", "- prompt: x\n- prompt: x\n  sed: 3\n", "line 2: .*did you mean 'seed'"),
        ("a.yaml", "- prompt: x\n- prompt: yes\n", "line 2: prompt: expected text, found True"),
        ("a.yaml", "prompt: x\nprompt: y\n", "line 2: prompt is given twice"),
        ("a.yaml", "&a [*a]", "expected key: value pairs"),
        ("a.yaml", "prompt: x\nset: {day: 2024-01-01}", "set: expected text, numbers or lists"),
        ("a.yaml", "prompt: x\nmotion: {1: 2}", "motion: expected keys of text, found 1"),
        ("a.csv", "prompt,frames\nx,2.5\n", "line 2: frames: expected a whole number"),
        ("a.yaml", "!!python/object:os.system {}", "not valid YAML"),
        ("a.txt", "# nothing\n", "no jobs in it"),
        ("a.json", "{}", "jobs are read from .txt, .jsonl, .csv, .yaml"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(tmp_path, name, text)


def test_unreadable_job_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        parse_jobs(tmp_path / "missing.txt")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8 text"):
        parse_jobs(tmp_path / "a.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        parse_jobs(tmp_path / "folder.txt")


def test_command_line_job(tmp_path: Path) -> None:
    motion = tmp_path / "drag.json"
    motion.write_text("{}")
    job = job_from_command_line(
        "a red circle", 6, 5, at=["3:a blue star: large"], motion=str(motion), settings=["a.b=1.5", "c=x=y"]
    )
    assert job.shots == (Shot(0.0, "a red circle", str(motion)), Shot(3.0, "a blue star: large"))
    assert (job.label, job.seconds, job.seed, job.set) == ("a red circle", 6.0, 5, {"a.b": 1.5, "c": "x=y"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "^prompt: is empty"),
        ({"seconds": -1.0}, "^--seconds: expected above 0"),
        ({"seconds": float("nan")}, "^--seconds: expected a finite"),
        ({"at": ["no time"]}, '^--at: expected "SECONDS:PROMPT"'),
        ({"at": ["x:y"]}, "^--at: expected a number of seconds"),
        ({"at": ["3: "]}, "^--at: is empty"),
        ({"at": ["4:x", "3:y"]}, "^--at '3:y': times must be in order"),
        ({"at": ["4:x", "4:y"]}, "^--at '4:y': there are two prompts at 4 s"),
        ({"at": ["6:x"]}, "^--at '6:x': expected from 0 to before the end"),
        ({"motion": "nowhere.json"}, "^--motion: no such file"),
        ({"image": "nowhere.png"}, "^--image: no such file"),
        ({"settings": ["novalue"]}, "^--set: expected key=value"),
        ({"settings": ["a=1", "a=2"]}, "^--set: a is given twice"),
        ({"settings": ["a=["]}, "^--set a: not a value"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        job_from_command_line(**({"prompt": "a red circle", "seconds": 6.0, "seed": 0} | options))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("A red circle, moving!", "A-red-circle-moving"),
        ("", "job"),
        ("...", "job"),
        ("a\0b\nc", "a-b-c"),
        ("-rf", "rf"),
        ("NUL.txt", "job-NUL.txt"),
        ("com1", "job-com1"),
        ("红色圆", "红色圆"),
        ("\ud800x", "x"),
    ],
)
def test_slug_makes_safe_names(text: str, name: str) -> None:
    assert slug(text) == name


def test_long_slugs_fit_and_stay_apart() -> None:
    names = {slug("红" * 100 + end) for end in "ab"}
    assert len(names) == 2
    assert all(len(name.encode()) <= 80 for name in names)


def test_settings_are_yaml() -> None:
    assert parse_settings(["a=true", "b=[1, 2]", "c="]) == {"a": True, "b": [1, 2], "c": None}


def test_length_may_be_frames(tmp_path: Path) -> None:
    job, late = parse(
        tmp_path,
        "a.jsonl",
        row(frames=17, shots=[{"at": 1, "prompt": "sand"}])
        + "\n"
        + row(frames=16, shots=[{"at": 1, "prompt": "x"}]),
    )
    assert (job.frames, job.seconds, job.length(16)) == (17, None, 17)
    with pytest.raises(InputError, match=r"shots\[1\].at: .* \(16 frames are 1 s\), found 1"):
        late.length(16)


def test_samples_are_items_with_seeds_of_their_own(tmp_path: Path) -> None:
    jobs = parse(tmp_path, "a.jsonl", row(samples=3, seed=7, id="x") + "\n" + row())
    items = items_of(jobs)
    assert [item.name for item in items] == [
        "00000-x-s7",
        "00000-x-s8",
        "00000-x-s9",
        "00001-a-red-circle-s101",
    ]
    assert [item.job.seed for item in items] == [7, 8, 9, 101]
    assert [item.job.index for item in Shard(1, 2).of(items)] == [0, 1]


def test_the_same_row_twice_is_two_items(tmp_path: Path) -> None:
    items = items_of(parse(tmp_path, "a.jsonl", "\n".join([row(seed=1)] * 3)))
    assert [item.copy for item in items] == [0, 1, 2]
    assert len({item.name for item in items}) == 3


@pytest.mark.parametrize("text", ["4/4", "-1/4", "a", "1", "1/0", "1/2/3", ""])
def test_bad_shards(text: str) -> None:
    with pytest.raises(InputError, match="--shard: expected I/N"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("text", "chosen", "prompts"),
    [
        ('{"prompt": "sand"}\n"sea"\n', None, ["sand", "sea"]),
        ("# note\nsand\n- sea\n", None, ["sand", "- sea"]),
        ("- sand\n- prompt: sea\n", "yaml", ["sand", "sea"]),
        ("prompt\nsand\n", "csv", ["sand"]),
    ],
)
def test_standard_input(
    text: str, chosen: str | None, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert [job.shots[0].prompt for job in parse_jobs("-", file_format=chosen)] == prompts


def test_formats_are_named_where_names_do_not_say_them(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("prompt\nsand\n")
    assert parse_jobs(tmp_path / "jobs", file_format="csv")[0].shots[0].prompt == "sand"
    with pytest.raises(InputError, match="--format: expected one of txt, jsonl, csv, yaml, found 'xml'"):
        parse_jobs(tmp_path / "jobs", file_format="xml")


def test_the_schema_knows_what_the_parser_knows(tmp_path: Path) -> None:
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    job = schema["anyOf"][1]
    assert set(job["properties"]) == set(JOB_KEYS)
    assert set(job["properties"]["shots"]["items"]["properties"]) == set(SHOT_KEYS)
    good = [
        row(id=3, frames=8, samples=2, size="64x64", set={"steps": 2}),
        row(shots=[{"at": 1, "motion": {"pins": [[0, 0]]}, "policy": "keep"}], size=[64, 64]),
        '"sand"',
    ]
    for line in good:
        check.validate(json.loads(line))
        (parsed,) = parse(tmp_path, "a.jsonl", line)
        check.validate(parsed.to_json())
    bad = [row(frames=0), row(frames=8, seconds=1), row(sead=1), row(seed=-1), "{}", row(shots=[]), '""', "1"]
    for line in bad:
        assert not check.is_valid(json.loads(line)), line
        with pytest.raises(InputError):
            parse(tmp_path, "a.jsonl", line)


@pytest.mark.parametrize("suffix", ["jsonl", pytest.param("yaml", marks=pytest.mark.slow)])
def test_long_job_files_start_soon(tmp_path: Path, suffix: str) -> None:
    """10,000 jobs: seconds, however busy the machine is; processor time, of this process."""
    rows = [row(shots=[{"at": 2, "prompt": f"sand {i}"}]) for i in range(10_000)]
    text = "\n".join(rows if suffix == "jsonl" else ["- " + text for text in rows])
    began = time.process_time()
    items = items_of(parse(tmp_path, f"a.{suffix}", text))
    assert time.process_time() - began < 20
    assert len(items) == 10_000
    assert items[-1].name == "09999-a-red-circle-s10099"


@pytest.mark.slow
def test_yaml_that_unfolds_without_end_is_one_short_line(tmp_path: Path) -> None:
    """Thirty lines of aliases stand for 10^30 values: quoting or hashing them would never end."""
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 31)]
    for field in ("set", "motion"):
        text = "\n".join(["prompt: x", f"{field}:", *(f"  {line}" for line in lines)])
        with pytest.raises(InputError, match=f"{field}: holds more than 4000000 values"):
            parse(tmp_path, "a.yaml", text)
    with pytest.raises(InputError, match="id: expected a name") as caught:
        parse(tmp_path, "a.yaml", "\n".join(["prompt: x", "id:", *(f"  {line}" for line in lines)]))
    assert len(str(caught.value)) < 400
