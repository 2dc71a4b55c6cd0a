"""Ways from words to words, compared: what is read of them, and what cannot be asked."""

import dataclasses
from pathlib import Path

import pytest
import torch

from distill.evaluate import main
from distill.evaluation.suites import evaluation_config
from distill.evaluation.transitions import FIGURES, _report, compare_ways, marks_of
from distill.evaluation.truth import Truth, TruthSuite
from streamgen import InputError
from tests.quick_instruments import quick_instruments

CONFIG = evaluation_config({"switches": 4})


@pytest.mark.parametrize(
    ("ways", "told"),
    [
        (["linear"], "expected two or more, each once, found linear"),
        (["linear", "linear"], "each once"),
        (["linear", "sideways"], "expected some of linear, spherical, at once, found 'sideways'"),
    ],
)
def test_ways_that_cannot_be_are_told(ways: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        compare_ways("tiny", CONFIG, ways, 2.0, tmp_path)


def test_on_the_command_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ways", "linear,up", "-o", str(tmp_path), "switches=4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--ways", "linear,spherical", "--run", "x", "-o", str(tmp_path)]) == 2
    assert "expected one of them" in capsys.readouterr().err


def test_streams_are_compared_in_pairs(tmp_path: Path) -> None:
    """What only one way has a number of is left out of the comparison, not counted as 0."""
    row = dict.fromkeys(FIGURES, 1.0)
    marks = [
        {"linear": row | {"seconds": float(i), "psnr": None}, "spherical": row | {"seconds": i + 0.5}}
        for i in range(6)
    ]
    report = _report(marks, ["linear", "spherical"], 2.0, tmp_path)
    found = {line["figure"]: line for line in report["compared"]}
    assert (found["seconds"]["n"], found["seconds"]["difference"]) == (6, 0.5)
    assert "psnr" not in found
    assert report["ways"]["linear"]["psnr"]["n"] == 0
    assert (tmp_path / "index.html").exists()


# readers are trained first
@pytest.mark.slow
def test_true_switches_keep_the_object_and_come_about() -> None:
    """Clips of the world itself, in which one thing fades into another over a few frames."""
    instruments, over = quick_instruments(64), 8
    views = [
        instruments.view(video)
        for video in Truth(64, seed=5).videos(TruthSuite("switches", "recache", 12, 41 + over + 49 + 24))
    ]
    found = [marks_of(instruments, view, over) for view in views]
    identity = [marks["identity"] for marks in found if marks["identity"] is not None]
    assert sum(identity) / len(identity) > 0.8
    assert sum(marks["success"] or 0 for marks in found) >= 10
    for view, marks in zip(views, found, strict=True):
        frames = view.video.frames.clone()
        frames[view.video.event :] = frames[view.video.event - 1]
        still = marks_of(instruments, instruments.view(dataclasses.replace(view.video, frames=frames)), over)
        assert still["success"] == 0
        assert still["jump"] == 0
        assert still["seconds"] == (over + 24) / 16
        gone = torch.zeros_like(frames)
        none = marks_of(instruments, instruments.view(dataclasses.replace(view.video, frames=gone)), over)
        assert none["identity"] == 0
        assert marks["jump"] is not None
