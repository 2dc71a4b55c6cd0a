"""A plan may give the published total of attention frames; what is inspected says how it adds up."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from models.context import ChunkPlan
from streamgen.checkpoints.directory import attention_text
from streamgen.errors import CheckpointError
from streamgen.families import inspect_checkpoint
from streamgen.stream.settings import StreamSettings
from streamgen.tiny.config import read_tiny_config
from streamgen.wan.config import CONFIGS, read_wan_config
from tests.command_line import call
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_wan import SMALL


def tiny_with(directory: Path, **plan: int | str | None) -> Path:
    write_checkpoint(directory, plan=ChunkPlan(2, 2, 2, 4))
    config = OmegaConf.load(directory / "config.yaml")
    config.sampling = {"steps": 2}
    for name, value in plan.items():
        if value is None:
            config.plan.pop(name)
        else:
            config.plan[name] = value
    OmegaConf.save(config, directory / "config.yaml")
    return directory


def test_tiny_and_wan_take_the_total(tmp_path: Path) -> None:
    config = read_tiny_config(tiny_with(tmp_path / "a", attention_frames=10, window_frames=None))
    assert (config.plan, config.sampling.window_frames) == (ChunkPlan(2, 2, 2, 6), 6)
    same = read_tiny_config(tiny_with(tmp_path / "b", attention_frames=8))
    assert same.plan == ChunkPlan(2, 2, 2, 4)
    path = CONFIGS / "wan-1.3b-longlive.yaml"
    wan = read_wan_config(path, (*SMALL, "plan.window_frames=null", "plan.attention_frames=9"))
    assert (wan.plan.window_frames, wan.sampling.window_frames) == (3, 3)
    assert (
        read_wan_config(path, (*SMALL, "plan.attention_frames=12")).plan == read_wan_config(path, SMALL).plan
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_frames": 12}, "attention_frames 12 contradict window_frames 4: with sink 2 and chunk 2 "
         "they leave a window of 8"),
        ({"attention_frames": 9, "window_frames": None}, "attention_frames 9 leave a window of 5 with sink 2 "
         "and chunk 2, expected whole chunks of 2"),
        ({"attention_frames": 3, "window_frames": None}, "leave a window of -1 with sink 2 and chunk 2"),
        ({"attention_frames": 2, "window_frames": None}, "leave a window of -2 with sink 2 and chunk 2"),
        ({"attention_frames": "all"}, "plan.attention_frames: expected a whole number, found 'all'"),
        ({"attention_frames": 8, "sink_frames": "x"}, "plan.sink_frames"),
        ({"attention_frames": 8, "window_frames": None, "chunk_frames": 0}, r"in 1..chunk_frames \(0\)"),
    ],
)  # fmt: skip
def test_what_does_not_add_up_is_one_line(
    changes: dict[str, int | str | None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tiny_with(tmp_path / "a", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tiny_config(directory)
    assert "\n" not in str(caught.value)
    line = call(capsys, "inspect", directory).error()
    assert "config.yaml" in line
    with pytest.raises(CheckpointError, match="contradict window_frames 6: with sink 3 and chunk 3"):
        read_wan_config(CONFIGS / "wan-1.3b-longlive.yaml", (*SMALL, "plan.attention_frames=21"))


def test_inspect_shows_the_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_with(tmp_path / "a", attention_frames=8, window_frames=None)
    assert inspect_checkpoint(tiny)["attention"] == "sink 2 + window 4 + chunk 2 = 8 attention frames"
    assert "sink 2 + window 4 + chunk 2 = 8 attention frames" in call(capsys, "inspect", tiny).stdout
    shown = call(capsys, "inspect", "wan-1.3b-self-forcing").stdout
    assert "sink 0 + window 18 + chunk 3 = 21 attention frames" in shown
    # the settings that streams open with may differ from what the weights were trained with
    text = attention_text(ChunkPlan(3, 3, 3, 6), StreamSettings(sink_frames=3, window_frames=3))
    assert text == (
        "sink 3 + window 3 + chunk 3 = 9 attention frames "
        "(the plan: sink 3 + window 6 + chunk 3 = 12 attention frames)"
    )


def test_settings_that_cut_a_chunk_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tiny_with(tmp_path / "a")
    config = OmegaConf.load(directory / "config.yaml")
    config.sampling.window_frames = 5
    OmegaConf.save(config, directory / "config.yaml")
    for command in (
        ["inspect", directory],
        ["render", "sea", "-o", tmp_path / "a.mp4", "--model", directory],
    ):
        assert (
            "window_frames must be a multiple of chunk_frames (2), found 5" in call(capsys, *command).error()
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dit.heads=0", "dit.heads: expected a whole number from 1, found 0"),
        ("dit.heads=-2", "dit.heads: expected a whole number from 1, found -2"),
        ("dit.heads=5", r"dim must be a multiple of heads \(5\), found 24"),
        ("dit.heads=8", r"dit.heads: 8 of 3 \(head_dim must be even and at least 6"),
        ("dit.heads=6", r"dit.heads: 6 of 4 \(head_dim must be even and at least 6"),
    ],
)
def test_heads_that_cannot_be_are_one_line(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_wan_config(CONFIGS / "wan-1.3b-longlive.yaml", (*SMALL, override))
    assert "\n" not in str(caught.value)
    directory = write_checkpoint(tmp_path / "a")
    config = OmegaConf.load(directory / "config.yaml")
    config.dit.heads = int(override.split("=")[1])
    OmegaConf.save(config, directory / "config.yaml")
    with pytest.raises(CheckpointError, match=message):
        read_tiny_config(directory)
