"""Names beyond what a file system takes, at every door: one line and exit code 2. And numbers as people write
them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from streamgen.render.job import setting_value
from tests.command_line import call
from tests.tiny_checkpoints import write_checkpoint

LONG = "x" * 300


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), steps=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["render", "a red circle", "-o", f"{LONG}.mp4"],
        ["render", "a red circle", "-o", f"{'x' * 249}.mp4"],
        ["render", "a red circle", "-o", f"{LONG}/out.mp4"],
        ["render", "a red circle", "-o", "out.mp4", "--model", LONG],
        ["render", "a red circle", "-o", "out.mp4", "--save-state", LONG],
        ["render", "a red circle", "-o", "out.mp4", "--continue-from", LONG],
        ["render", "a red circle", "-o", "out.mp4", "--image", f"{LONG}.png"],
        ["render", "a red circle", "-o", "out.mp4", "--video", f"{LONG}.mp4"],
        ["render", "a red circle", "-o", "out.mp4", "--motion", f"{LONG}.json"],
        ["render", f"{LONG}.jsonl", "-o", "out"],
        ["render", f"{LONG}.json", "-o", "out.mp4"],
        ["render", "a", "-o", "out.mp4", "--model", "wan-1.3b-longlive", "--weights", LONG],
        ["render", "a", "-o", "out.mp4", "--model", "wan-1.3b-longlive", "--weights", f"{LONG}.pt"],
        ["render", "a", "-o", "o.mp4", "--model", "wan-1.3b-longlive", "--random-weights", "--lora", LONG],
        ["inspect", LONG],
        ["adopt", LONG],
        ["convert", LONG, "-o", "out", "--model", "wan-1.3b-longlive"],
        ["compare", f"{LONG}.mp4", "b.mp4"],
        ["bench", "--model", LONG],
    ],
    ids=lambda arguments: " ".join(part[:12] for part in arguments),
)
def test_names_that_are_too_long_are_one_line(
    arguments: list[str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--model" not in arguments and arguments[0] == "render":
        arguments = [*arguments, "--model", str(checkpoint), "--seconds", "0.2"]
    if "--random-weights" in arguments:
        arguments = [*arguments, "--model-set", "dit.layers=1", "--model-set", "dit.dim=128"]
        arguments += ["--model-set", "dit.heads=1", "--model-set", "dit.ffn_dim=64"]
    error = call(capsys, *arguments).error()
    assert len(error) < 400
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e30", 1e30), ("-2E5", -2e5), ("1.5e-3", 0.0015), (".5e1", 5.0), ("1e", "1e"), ("e5", "e5"), ("4", 4)],
)
def test_numbers_with_exponents_are_numbers(text: str, value: Any) -> None:
    found = setting_value("x", text, "--set x")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["!!!", "rain: yes", "[fog", "rain #2", "0.5", "null", "style:1, pace:0"])
def test_words_are_taken_as_they_stand(text: str) -> None:
    """A negative prompt of "!!!" was refused, "rain: yes" was no words and "rain #2" lost its end."""
    for name in ("negative_prompt", "input_prompt", "lora"):
        assert setting_value(name, f" {text} ", "--set") == text
    assert setting_value("negative_prompt", '" rain"', "--set") == " rain"


def test_a_setting_of_1e30_is_refused_by_its_range(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["render", "a red circle", "-o", tmp_path / "out.mp4", "--model", checkpoint]
    assert (
        "settings: steps must be in 1..1000, found 1e+30"
        in call(capsys, *command, "--set", "steps=1e30").error()
    )
    done = call(capsys, *command, "--seconds", "0.2", "--set", "shift=2e0")
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["shift"] == 2.0
