"""Prompt files as others have them become jobs: a prompt a line, lengths for each, lists that switch, rows of
exams.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from streamgen import InputError
from streamgen.render.job import RenderJob
from streamgen.render.job_file import parse_jobs
from tests.command_line import call


def jobs(folder: Path, name: str, text: str) -> list[RenderJob]:
    (folder / name).write_text(text, encoding="utf-8")
    return parse_jobs(folder / name)


def shots(job: RenderJob) -> list[tuple[float, str | None, str | None]]:
    return [(shot.at_seconds, shot.prompt, shot.cache) for shot in job.shots]


@pytest.mark.parametrize(
    ("line", "expected", "seconds"),
    [
        ("a boat [10s] | a city [5s]", [(0, "a boat", None), (10, "a city", None)], 15),
        ("[10s] | a boat | [2.5s] | a city", [(0, "a boat", None), (10, "a city", None)], 12.5),
        ("a boat[4s]|# a city [ 3 S ]", [(0, "a boat", None), (4, "a city", "clear")], 7),
        ("[3s] a boat", [(0, "a boat", None)], 3),
        ("[1s] a boat | a city [2sec]", [(0, "a boat", None), (1, "a city", None)], 3),
    ],
)
def test_lines_with_lengths(
    line: str, expected: list[tuple[float, str, str | None]], seconds: float, tmp_path: Path
) -> None:
    first, second = jobs(tmp_path, "a.txt", f"a plain | prompt\n{line}\n")
    assert shots(first) == [(0, "a plain | prompt", None)]
    assert shots(second) == expected
    assert second.seconds == seconds


@pytest.mark.parametrize(
    ("row", "times", "seconds"),
    [
        ({"prompts": ["a", "b", "c"]}, [0, 10, 20], 30),
        ({"prompts": ["a", "b"], "switch_seconds": [3]}, [0, 3], 13),
        ({"prompts": ["a", "b"], "switch_frames": [80], "seconds": 8}, [0, 5], 8),
        # LongLive's: latent frame 40 begins with frame 157
        ({"prompts": ["a", "b"], "switch_frame_indices": [40]}, [0, 157 / 16], 157 / 16 + 10),
        ({"prompts": ["a"]}, [0], 10),
    ],
)
def test_lists_that_switch(row: dict[str, Any], times: list[float], seconds: float, tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "a.jsonl", json.dumps(row))
    assert [shot.at_seconds for shot in job.shots] == times
    assert [shot.prompt for shot in job.shots] == row["prompts"]
    assert job.seconds == seconds


def test_rows_of_exams(tmp_path: Path) -> None:
    row = {"prompt_en": "a boat", "dimension": ["color"], "auxiliary_info": {"color": "red"}, "seed": 7}
    (job,) = jobs(tmp_path, "a.jsonl", json.dumps(row))
    assert (shots(job), job.seed) == ([(0, "a boat", None)], 7)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "a boat [10s] | a city", "expected a length such as [10s] for 'a city', found none"),
        ("a.txt", "a boat [1s] [2s]", "expected one length for each prompt"),
        ("a.txt", "a boat [1s] | [2s]", "expected words for [2s], found none"),
        ("a.txt", "a boat [1s] | ", "expected words and [10s] in each part"),
        ("a.txt", "[1s] | a boat [2s]", "expected one length for each prompt"),
        ("a.txt", "a boat [0s]", "expected a length such as [10s]"),
        ("a.txt", "a boat [99999999s]", "expected"),
        ("a.jsonl", '{"prompts": []}', "prompts: expected a list of prompts"),
        ("a.jsonl", '{"prompts": "a"}', "prompts: expected a list of prompts"),
        ("a.jsonl", '{"prompts": ["a", "b"], "switch_frames": [1, 2]}', "expected 1 places for 2 prompts"),
        ("a.jsonl", '{"prompts": ["a", "b"], "switch_frames": ["x"]}', "switch_frames: expected"),
        (
            "a.jsonl",
            '{"prompts": ["a", "b"], "switch_frames": [5], "switch_seconds": []}',
            "expected one of",
        ),
        ("a.jsonl", '{"prompts": ["a", 3]}', "prompt: expected"),
        ("a.jsonl", '{"prompt_en": ""}', "prompt"),
        ("a.jsonl", '{"prompts": ["a"], "colour": 1}', "colour"),
    ],
)
def test_what_makes_no_sense_is_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        jobs(tmp_path, name, text)
    assert message in str(caught.value)
    assert "line 1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_they_are_listed_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("a red circle [1s] | # a blue star [1s]\n", encoding="utf-8")
    done = call(capsys, "render", tmp_path / "a.txt", "-o", tmp_path / "out", "--dry-run")
    assert done.code == 0, done.stderr
    assert "a red circle" in done.stdout + done.stderr
