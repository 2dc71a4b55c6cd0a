"""The model in the package: it loads, is small, and follows prompts, switches and drags on fixed seeds."""

import math

import pytest
import torch
from torch import Tensor

from distill.samples import object_centre
from streamgen import Pipeline, StreamEvent, load_pipeline, model_names
from streamgen.families import WEIGHTS
from streamgen.motion.tracks import TrackSet, drag

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def tiny() -> Pipeline:
    return load_pipeline("tiny", device="cpu")


def play(
    pipeline: Pipeline, prompt: str, chunks: int, seed: int = 0, event: StreamEvent | None = None
) -> Tensor:
    """Pictures of a stream; `event` comes after the third chunk."""
    session, parts = pipeline.open(prompt, seed), []
    for i in range(chunks):
        if i == 3 and event is not None:
            session.submit(event)
        parts.append(next(session).frames)
    return torch.cat(parts)


def share(frames: Tensor, colour: str) -> float:
    """Share of pixels in which the colour's channel stands out by far."""
    red, green, blue = frames.float().unbind(-1)
    chosen = {
        "red": (red > 120) & (red > 2 * green) & (red > 2 * blue),
        "blue": (blue > 120) & (blue > 1.4 * green) & (blue > 2 * red),
    }[colour]
    return float(chosen.float().mean())


def test_it_is_there_and_small() -> None:
    assert "tiny" in model_names()
    files = {f.name: f.stat().st_size for f in (WEIGHTS / "tiny").iterdir()}
    assert {
        "config.yaml",
        "model.safetensors",
        "tokenizer.safetensors",
        "vocabulary.txt",
        "README.md",
    } <= set(files)
    assert max(files.values()) <= 16 * MIB


def test_backgrounds_look_like_their_names(tiny: Pipeline) -> None:
    """The median colour tells sea, sand, grass, night and snow apart."""
    expected = {
        "sea": lambda r, g, b: b > g > r,
        "sand": lambda r, g, b: r > g > b and r > 170,
        "grass": lambda r, g, b: g > r and g > b,
        "night sky": lambda r, g, b: max(r, g, b) < 90,
        "snow": lambda r, g, b: min(r, g, b) > 150,
    }
    for name, looks_right in expected.items():
        frames = play(tiny, f"a small red circle stays over the {name}", 4)
        colour = frames[-1].flatten(0, 1).float().median(0).values.tolist()
        assert looks_right(*colour), f"{name}: median colour {colour}"


def test_the_readme_switch_changes_colour_and_background(tiny: Pipeline) -> None:
    switch = StreamEvent(prompt="a large blue star stays over sand")
    frames = play(tiny, "a small red circle moves right over the sea", 14, event=switch)
    before, after = frames[5:9], frames[-4:]
    assert share(before, "red") > 0.02
    assert share(after, "red") < 0.01
    red, _, blue = after.flatten(0, 2).float().median(0).values.tolist()
    assert red > blue, "the sand is not there"
    assert share(after, "blue") > 0.02


@pytest.mark.parametrize(("before", "after", "seed"), [("red", "blue", 1), ("blue", "red", 2)])
def test_a_switch_of_the_colour_alone(tiny: Pipeline, before: str, after: str, seed: int) -> None:
    switch = StreamEvent(prompt=f"a medium {after} circle stays over the snow")
    frames = play(tiny, f"a medium {before} circle stays over the snow", 10, seed, switch)
    assert share(frames[5:9], before) > 0.02
    assert share(frames[-4:], before) < 0.01
    assert share(frames[-4:], after) > 0.02


@pytest.mark.parametrize(
    ("prompt", "seed", "target"),
    [
        ("a large red circle stays over the sand", 0, (0.8, 0.25)),
        pytest.param("a large yellow star stays over the sea", 2, (0.3, 0.75), marks=pytest.mark.slow),
        pytest.param(
            "a medium white diamond moves right over the grass", 3, (0.2, 0.2), marks=pytest.mark.slow
        ),
    ],
)
def test_a_drag_takes_the_object_along(
    tiny: Pipeline, prompt: str, seed: int, target: tuple[float, float]
) -> None:
    """In mid-stream, where the prompt has the object stay or go the other way."""
    free = play(tiny, prompt, 12, seed)
    tracks: TrackSet = drag(object_centre(free[8]), target, 32)
    dragged = play(tiny, prompt, 12, seed, StreamEvent(motion=tracks))
    assert torch.equal(free[:9], dragged[:9])
    missed, without = (math.dist(object_centre(frames[41]), target) for frames in (dragged, free))
    assert missed < 0.2
    assert missed < 0.5 * without
