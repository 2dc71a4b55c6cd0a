"""The pictures of the docs are drawn from a config, and say what they were drawn from."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from demo.shots import SHOTS
from distill import pictures, samples
from distill.config import build, read_mapping
from distill.pictures import CONFIG, PictureConfig
from distill.scenes import caption_vocabulary
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

ROOT = Path(__file__).resolve().parents[2]
FEW = [
    "world=false",
    "zoom=1",
    "seconds=0.5",
    "prompts=[{seed: 7, prompt: a red star stays over sand}]",
    "switches=[{seed: 8, prompt: a red star stays over sand, then: a blue star stays over sand}]",
    "drags=[{seed: 9, prompt: a red star stays over sand, to: [0.2, 0.8]}]",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", words=caption_vocabulary())


def test_every_picture_of_a_stream_in_the_docs_is_drawn() -> None:
    """And from a seed of its own: those in order, none chosen by what it shows."""
    config = build(PictureConfig, read_mapping(CONFIG))
    drawn = {f"{name}.png" for name in ("prompts", "switches", "drags") if vars(config)[name]}
    shots = {f"{name}.png" for name, _, _ in SHOTS}  # of a browser
    assert drawn == {file.name for file in (ROOT / "docs" / "media").glob("*.png")} - shots
    assert config.seeds == list(range(1000, 1000 + len(config.seeds)))


def test_pictures_are_a_function_of_config_and_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(folder: str, *more: str) -> dict[str, bytes]:
        out = tmp_path / folder
        assert pictures.main(["-o", str(out), f"model={checkpoint}", *FEW, *more]) == 0
        return {path.name: path.read_bytes() for path in out.glob("*.png")}

    first = drawn("first")
    assert set(first) == {"prompts.png", "switches.png", "drags.png"}
    record = json.loads((tmp_path / "first" / "pictures.json").read_text())
    assert record["config"]["prompts"] == [{"seed": 7, "prompt": "a red star stays over sand"}]
    assert record["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in first.items()}
    with Image.open(tmp_path / "first" / "prompts.png") as picture:
        assert picture.width == 8 * 35 + 3
    numbers = iter(range(100))

    def check() -> None:
        again = drawn(f"again {next(numbers)}", "switches=[]", "drags=[]")
        assert again == {"prompts.png": first["prompts.png"]}

    stream = samples.stream
    assert_needs(
        check,
        monkeypatch,
        samples,
        "stream",
        lambda p, words, seed, *rest: stream(p, words, seed + 1, *rest),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=nothing"], "nothing"),
        (["--config", "nothing.yaml"], "nothing.yaml: no such file"),
        (["zoom=0"], "zoom: expected 1 to 16, found 0"),
        (["colums.prompts=3"], "did you mean 'columns'"),
        (["drags=[{seed: 1, prompt: a star, to: [2, 0]}]"], "drags.to: expected x and y in [0, 1]"),
        (["prompts=[{seed: 1}]"], "prompts[0].prompt is missing"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pictures.main(["-o", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
