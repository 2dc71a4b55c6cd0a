"""Tokenizers on clips of a camera: figures by hand, what is read, bad input."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill import evaluate
from distill.evaluation import comparison, natural
from distill.evaluation.natural import NATURAL_FRAMES, natural_figures, read_natural
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen.errors import InputError
from tests.clip_folders import write_clip
from tests.quick_instruments import quick_instruments
from tests.tiny_models import assert_needs

TOKENIZER = VideoTokenizer(
    VideoTokenizerConfig(dim=24, heads=1, encoder_spatial=1, decoder_spatial=1, refine_channels=4)
)
WEIGHTS = Path(__file__).resolve().parents[2] / "streamgen" / "weights" / "tiny"


def test_figures_of_known_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of .2 in one clip; in the other .1, and .4 in half of its pieces."""
    clips = {name: torch.zeros(NATURAL_FRAMES, 16, 16, 3, dtype=torch.uint8) for name in ("even", "uneven")}
    errors = {id(clips["even"]): torch.full((65,), 0.2), id(clips["uneven"]): torch.full((65,), 0.1)}
    errors[id(clips["uneven"])][33:] = 0.4

    def coded(tokenizer: VideoTokenizer, frames: Tensor) -> tuple[Tensor, Tensor]:
        before = torch.zeros(65, 3, 16, 16)
        return before, before + errors[id(frames)][:, None, None, None]

    monkeypatch.setattr(natural, "reconstruct", coded)

    def decibels(square: float) -> float:
        return float(10 * torch.log10(torch.tensor(4 / square)))

    def check() -> None:
        found = natural_figures(TOKENIZER, clips)
        even, uneven, mean = found["even"], found["uneven"], found["mean"]
        assert [figure.n for figure in found.values()] == [8, 8, 8]
        assert (even.value, even.low, even.high) == pytest.approx([decibels(0.04)] * 3, abs=1e-4)
        assert uneven.value == pytest.approx(decibels((0.01 + 0.16) / 2), abs=1e-4)
        assert uneven.low is not None
        assert uneven.high is not None
        assert decibels(0.16) <= uneven.low < decibels(0.085) - 1 < decibels(0.085) + 1 < uneven.high
        assert mean.value == pytest.approx((decibels(0.04) + decibels(0.085)) / 2, abs=1e-4)

    one_piece = lambda tokenizer, frames: torch.full((8,), 0.04, dtype=torch.float64)  # noqa: E731
    assert_needs(check, monkeypatch, natural, "_pieces", one_piece)


def test_clips_are_read_as_own_ones_are(tmp_path: Path) -> None:
    first, second = write_clip(tmp_path / "a.mp4", frames=70), write_clip(tmp_path / "b.mp4", 1, frames=66)
    found = read_natural([first, second], 32)
    assert {name: tuple(frames.shape) for name, frames in found.items()} == dict.fromkeys(
        "ab", (65, 32, 32, 3)
    )
    short = write_clip(tmp_path / "c.mp4", frames=40)
    with pytest.raises(InputError, match=r"c\.mp4: expected at least 65 frames at 16 fps, found 40"):
        read_natural([short], 32)
    with pytest.raises(InputError, match="found 'a' twice"):
        read_natural([first, first], 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "a.mp4"], "--clip: is measured with --tokenizer, found none"),
        (["--clip", "none.mp4", "--tokenizer", str(WEIGHTS)], "none.mp4"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["-o", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.slow
def test_a_report_on_tokenizers_shows_the_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Instruments", lambda world: quick_instruments(world.size))
    clip, out = write_clip(tmp_path / "street.mp4", frames=65, height=64, width=80), tmp_path / "out"
    command = ["--tokenizer", str(WEIGHTS), "--clip", str(clip), "-o", str(out), "--json", "clips=8"]
    assert evaluate.main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row["natural"]) == ["street", "mean"]
    assert row["natural"]["street"]["value"] > 20
    assert row["natural"]["street"]["low"] <= row["natural"]["street"]["value"]
    assert "street" in (out / "index.html").read_text()
    assert (out / "natural.png").stat().st_size > 10_000
