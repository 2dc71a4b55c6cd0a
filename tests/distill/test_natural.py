"""Tokenizers on clips of a camera: figures by hand, what is read, bad input."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill import evaluate
from distill.config import read_mapping
from distill.evaluation import comparison, natural
from distill.evaluation.natural import NATURAL_FRAMES, natural_figures, read_natural, world_figures
from distill.evaluation.runner import TRUTH_SEED
from distill.evaluation.tokenizer import reconstruct
from distill.evaluation.truth import Truth, TruthSuite
from distill.families.tiny import load_tokenizer
from distill.photographs import PhotographClips, PhotographConfig, photograph_paths, read_photographs
from distill.pixels import moving_cells
from distill.recipe import read_recipe
from distill.scenes import MOTIONS
from distill.stages import load_run
from distill.stages.tokenizer import TokenizerRun
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen.errors import InputError
from tests.clip_folders import write_clip
from tests.quick_instruments import quick_instruments
from tests.tiny_models import assert_needs

TOKENIZER = VideoTokenizer(
    VideoTokenizerConfig(dim=24, heads=1, encoder_spatial=1, decoder_spatial=1, refine_channels=4)
)
WEIGHTS = Path(__file__).resolve().parents[2] / "streamgen" / "weights" / "tiny"
NATURAL = WEIGHTS.parent / "natural-tokenizer"


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


@pytest.mark.slow
def test_pixels_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny model's tokenizer, and once more without its network: worse on the same clips."""
    clip, out = write_clip(tmp_path / "street.mp4", frames=65, height=64, width=80), tmp_path / "out"
    linear = tmp_path / "linear"
    shutil.copytree(WEIGHTS, linear)
    tokenizer, _ = load_tokenizer(WEIGHTS, torch.device("cpu"))
    tokenizer.decoder.reset_output()
    save_file(tokenizer.state_dict(), linear / "tokenizer.safetensors")
    given = ["--tokenizer", str(WEIGHTS), "--tokenizer", str(linear), "--clip", str(clip)]
    assert evaluate.main([*given, "--quick", "-o", str(out), "--json", "clips=8"]) == 0
    whole, less = json.loads(capsys.readouterr().out)
    assert [whole["world"]["n"], whole["street"]["n"]] == [8, 8]
    assert whole["more than the first"]["value"] == whole["more in moving cells"]["high"] == 0
    lost = less["world"]["value"] - whole["world"]["value"]
    assert less["more than the first"]["value"] == pytest.approx(lost)
    assert less["more than the first"]["high"] < 0 > less["more in moving cells"]["value"]
    # by hand, on the first clip of the world
    videos = Truth(64, range(len(MOTIONS)), TRUTH_SEED).videos(TruthSuite("prompts", "plain", 1, 17))
    alone = world_figures(*(load_tokenizer(WEIGHTS, torch.device("cpu"))[0],) * 2, videos)
    before, after = reconstruct(load_tokenizer(WEIGHTS, torch.device("cpu"))[0], videos[0].frames)
    square = (after - before).square().mean(1, keepdim=True)
    moving = moving_cells(before[None], 8)[0]
    by_hand = [10 * math.log10(4 / float(x)) for x in (square.mean(), (square * moving).sum() / moving.sum())]
    assert [alone[name].value for name in ("world", "world, moving cells")] == pytest.approx(
        by_hand, abs=1e-3
    )
    assert "street" in (out / "index.html").read_text()
    assert (out / "natural.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_report_on_tokenizers_shows_the_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Instruments", lambda world, kept=None: quick_instruments(world.size))
    clip, out = write_clip(tmp_path / "street.mp4", frames=65, height=64, width=80), tmp_path / "out"
    command = ["--tokenizer", str(WEIGHTS), "--clip", str(clip), "-o", str(out), "--json", "clips=8"]
    assert evaluate.main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row["natural"]) == ["street", "mean"]
    assert row["natural"]["street"]["value"] > 20
    assert row["natural"]["street"]["low"] <= row["natural"]["street"]["value"]
    assert "street" in (out / "index.html").read_text()
    assert (out / "natural.png").stat().st_size > 10_000


def test_the_shipped_tokenizer_is_for_natural_video() -> None:
    """What its card says of it, and better than the tiny model's by far on clips that neither has seen."""
    card = (NATURAL / "README.md").read_text()
    own, digest = load_tokenizer(NATURAL, torch.device("cpu"))
    assert digest in card
    assert (NATURAL / "tokenizer.safetensors").stat().st_size < 16 * 2**20
    # no model: `streamgen models` lists what has a config
    assert sorted(path.name for path in NATURAL.iterdir()) == [
        "README.md",
        "tokenizer.safetensors",
        "tokenizer.yaml",
    ]
    source = PhotographClips(read_photographs(photograph_paths()[:1]), PhotographConfig(still=0.0, cut=0.0))
    video = source.sample(2, 9, 64, seed=4)
    errors = []
    for tokenizer in (own, load_tokenizer(WEIGHTS, torch.device("cpu"))[0]):
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(video).mean, 9).clamp(-1, 1)
        errors.append(float((decoded - video).square().mean()))
    assert errors[0] < 0.7 * errors[1]


def test_own_clips_take_it_by_default() -> None:
    recipe = NATURAL.parents[2] / "configs" / "distill" / "clips"
    assert {stage.name for stage, _ in read_recipe(recipe).stages} == {"causal", "init", "self_forcing"}
    for name in ("causal", "init", "self_forcing"):
        config = read_mapping(recipe / f"{name}.yaml")
        assert NATURAL.parents[2] / config["tokenizer"] == NATURAL
    # going on from it needs its sizes
    run = load_run(recipe / "tokenizer.yaml")
    assert isinstance(run, TokenizerRun)
    assert NATURAL.parents[2] / str(run.init) == NATURAL
    assert run.model == load_tokenizer(NATURAL, torch.device("cpu"))[0].config
