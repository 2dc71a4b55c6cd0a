"""Numbers among the settings: each has a range, which every door holds, and inside of which a stream plays.

`text_guidance=1e30` once came as far as the network, of which it was said then that its velocity is not
finite; a whole number too large for a float ended in a traceback.
"""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from models.live_lora import MAX_STRENGTH, parse_strengths
from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.stream.settings import OPEN_ONLY, RANGES, StreamSettings
from streamgen.wan.loras import parse_loras
from tests.command_line import call
from tests.streams import RED
from tests.tiny_checkpoints import write_checkpoint

HUGE = 10**400
# beyond all ranges: in range for a float, for a whole number alone, and for nothing that Python writes
BEYOND: list[float] = [1e30, -1e30, 10**30, HUGE, -HUGE, 10**5000]
NUMBERS = [field.name for field in fields(StreamSettings) if type(field.default) in (int, float)]
# their strength lives in words
IN_WORDS = ["lora"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", steps=1)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    torch.set_num_threads(1)
    return load_pipeline(checkpoint)


def written(value: float) -> str:
    """As YAML has it: a float with a dot, a whole number of any size in hexadecimal."""
    return f"{value:#x}" if isinstance(value, int) else f"{value:.1e}"


def clear(line: str, name: str) -> None:
    """Names the setting, what was expected, and what was found, in one line that can be read."""
    assert name in line
    assert " must be " in line or "expected " in line
    assert "found " in line
    assert "\n" not in line
    assert len(line) < 250, line


def test_every_number_has_a_range_of_which_its_default_is_one() -> None:
    assert set(RANGES) == {*NUMBERS, *IN_WORDS}
    defaults = vars(StreamSettings())
    for name, range_ in RANGES.items():
        assert -math.inf < range_.least < range_.most < math.inf
        assert name in IN_WORDS or range_.holds(defaults[name])
        assert not range_.holds(math.nan)


@pytest.mark.parametrize("name", [*NUMBERS, *IN_WORDS])
def test_python_refuses_what_is_beyond(name: str, pipeline: Pipeline) -> None:
    doors: list[Callable[[float], object]] = [
        lambda value: StreamSettings().updated({name: value}),
        lambda value: pipeline.open(RED, settings={name: value}),
    ]
    if name in NUMBERS:
        doors.append(lambda value: StreamSettings(**{name: value}))
    for door, value in itertools.product(doors, BEYOND):
        with pytest.raises((InputError, ValueError)) as refusal:
            door(value)
        clear(str(refusal.value), name)
    session = pipeline.open(RED)
    for value in BEYOND:
        receipt = session.submit(StreamEvent(settings={name: value}))
        assert receipt.status == "refused"
        if name in OPEN_ONLY:
            assert f"setting {name}: fixed when the stream opens" in str(receipt.reason)
        else:
            clear(str(receipt.reason), name)


def test_a_job_file_refuses_what_is_beyond(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(name, value) for name in RANGES for value in (of_its_kind(name), HUGE)]
    job = "---\nprompt: a red circle\nseconds: 1\nset: {{{}: {}}}\n"
    file = tmp_path / "jobs.yaml"
    file.write_text("".join(job.format(name, written(value)) for name, value in rows))
    done = call(capsys, "render", file, "-o", tmp_path / "videos", "--model", checkpoint)
    *lines, last = done.stderr.splitlines()
    assert (done.code, len(lines)) == (1, len(rows)), done
    assert last.startswith(f"{len(rows)} items: {len(rows)} failed")
    for line, (name, _) in zip(lines, rows, strict=True):
        clear(line, name)


def of_its_kind(name: str) -> float:
    """A number that is far beyond, of the kind that the setting has."""
    return 10**30 if type(vars(StreamSettings())[name]) is int else 1e30


@pytest.mark.parametrize("name", RANGES)
def test_command_lines_refuse_what_is_beyond(
    name: str,
    checkpoint: Path,
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline.open(RED).save("state")
    render, made = ["render", "a red circle", "-o", "clip.mp4"], ["--model", checkpoint, "--set"]
    clear(call(capsys, *render, *made, f"{name}={written(of_its_kind(name))}").error(), name)
    clear(call(capsys, "bench", *made, f"{name}={written(HUGE)}").error(), name)
    line = call(capsys, *render, "--continue-from", "state", *made, f"{name}={written(HUGE)}").error()
    if name in OPEN_ONLY:
        assert f"setting {name}: fixed when the stream opens" in line
    else:
        clear(line, name)


@pytest.mark.parametrize("name", RANGES)
def test_the_settings_of_a_checkpoint_are_refused_beyond(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((checkpoint / "config.yaml").read_text())
    config["sampling"][name] = of_its_kind(name)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    clear(call(capsys, "bench", "--model", tmp_path).error(), name)


def ends(name: str) -> list[float]:
    range_ = RANGES[name]
    least = math.nextafter(range_.least, 1) if range_.above else range_.least
    return [least, math.nextafter(range_.most, 0) if range_.below else range_.most]


@pytest.mark.parametrize("name", [name for name in NUMBERS if "steps" not in name and "frames" not in name])
def test_at_the_ends_of_its_range_a_stream_plays(name: str, pipeline: Pipeline) -> None:
    """Steps and frames are counts, which cost time and memory alone."""
    for value in ends(name):
        try:
            session = pipeline.open(RED, settings={name: value, "negative_prompt": "a star"})
        except InputError as error:
            assert name == "strength"
            clear(str(error), name)
            continue
        for _ in range(3):
            assert torch.isfinite(next(session).latents).all()


def test_strengths_of_loras_stop_at_the_same_number_wherever_they_stand() -> None:
    beyond = math.nextafter(MAX_STRENGTH, math.inf)
    for text in (f"style:{beyond!r}", f"style:{-beyond!r}", f"{beyond!r}", "style:1e999", f"style:{HUGE}"):
        with pytest.raises(ValueError, match=r"expected NAME:STRENGTH with a number in -100\.\.100, found"):
            parse_strengths(text)
        with pytest.raises(InputError, match=r"lora: expected NAME:STRENGTH with a number in -100\.\.100"):
            StreamSettings().updated({"lora": text})
    assert parse_strengths(f"style:{MAX_STRENGTH!r},{-MAX_STRENGTH!r}") == {"style": 100.0, "": -100.0}
    for text in (f"style.safetensors:{beyond!r}", "style.safetensors:-1e30"):
        with pytest.raises(InputError, match=r"strength: expected a number in -100\.\.100, found"):
            parse_loras([text])
    assert parse_loras(["style.safetensors:100"])[0].strength == MAX_STRENGTH


def test_what_is_found_is_told_though_it_be_a_number_that_python_does_not_write() -> None:
    for value in (10**5000, [10**5000], {"a": [10**5000]}):
        with pytest.raises(InputError, match=r"found (a number of 16610 bits|a list|a dict|.{0,60})$"):
            StreamSettings().updated({"sampler": value})
    with pytest.raises(InputError, match=r"weight: expected a number of at least 0 and at most 1e\+06"):
        StreamEvent(blend={RED: HUGE})
    assert json.dumps(StreamSettings().to_json())
