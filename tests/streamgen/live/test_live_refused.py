"""What a stream that listens refuses, in one line each, and nothing is lost."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.live.read import ReadInput
from streamgen.wan.options import WanOptions
from tests.live_input import LISTENING, clip, listening
from tests.streams import RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_wan import SMALL


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model"), steps=2))


def test_strengths_outside_the_levels_are_refused_in_one_line(pipeline: Pipeline) -> None:
    session = listening(pipeline, clip(40), settings={"steps": 2})
    for value in (0.5, 0.0, 1.5, "much", -1.0):
        receipt = session.submit(StreamEvent(settings={"strength": value}))
        assert receipt.status == "refused"
        assert receipt.reason is not None
        assert "strength" in receipt.reason
        assert "\n" not in receipt.reason
    low = pipeline.open(RED, settings={"steps": 2, "strength": 0.5})
    with pytest.raises(InputError, match=r"strength: expected 0\.75 to 1 .* found 0\.5"):
        low.listen(clip(4))
    # without input it means nothing
    assert next(low) is not None


BAD_MASKS = [
    torch.ones(3),
    torch.ones(2, 2, 2),
    torch.full((2, 2), 2.0),
    torch.full((2, 2), float("nan")),
    torch.zeros(0, 4),
    "mask.png",
]


@pytest.mark.parametrize("mask", BAD_MASKS)
def test_masks_that_cannot_be_are_refused_in_one_line(mask: Any) -> None:
    with pytest.raises(InputError, match=r"^mask: expected numbers"):
        StreamEvent(mask=mask)


def test_masks_of_other_sizes_fit(pipeline: Pipeline) -> None:
    session = listening(pipeline, clip(40))
    for size in ((1, 2), (7, 5), (480, 832)):
        mask = torch.zeros(size)
        mask[:, size[1] // 2 :] = 1
        session.submit(StreamEvent(mask=mask))
        next(session)
        assert session.controls.mask is not None
        assert session.controls.mask.shape == (4, 4)
        assert float(session.controls.mask[0, 0]) == 0
        assert float(session.controls.mask[3, 3]) == 1


BAD_FRAMES = [
    torch.zeros(4, 32, 32, 3),
    torch.zeros(4, 32, 32, 4, dtype=torch.uint8),
    torch.zeros(0, 32, 32, 3, dtype=torch.uint8),
    torch.zeros(4, 0, 32, 3, dtype=torch.uint8),
    "clip.mp4",
    [[1, 2]],
]


@pytest.mark.parametrize("frames", BAD_FRAMES)
def test_frames_that_cannot_be_are_refused_and_nothing_is_lost(frames: Any, pipeline: Pipeline) -> None:
    session = listening(pipeline, None)
    session.feed(clip(1))
    with pytest.raises(InputError, match=r"^input: expected uint8 frames \(T, H, W, 3\), found"):
        session.feed(frames)
    chunk = next(session)
    assert chunk.input is not None
    assert chunk.input.numbers == (0,)


def test_a_stream_that_reads_its_input_is_not_fed(pipeline: Pipeline) -> None:
    session = listening(pipeline, clip(9))
    with pytest.raises(InputError, match="reads its input from given frames"):
        session.feed(clip(1))
    assert isinstance(session.source, ReadInput)
    with pytest.raises(InputError, match="no such file"):
        session.listen("nowhere.mp4")
    assert isinstance(session.source, ReadInput)


def test_what_is_no_input_is_refused(pipeline: Pipeline) -> None:
    session = listening(pipeline, None)
    for source in (7, object(), [1], {}):
        with pytest.raises(InputError, match="input: expected a path, - or frames, found"):
            session.listen(source)  # type: ignore[arg-type]
    assert session.source is None


def test_a_stream_of_several_processes_hears_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = listening(pipeline, None)
    monkeypatch.setattr(pipeline, "mesh", SimpleNamespace(size=2))
    with pytest.raises(InputError, match="input: not over 2 processes"):
        session.listen(clip(4))


def test_a_model_without_pictures_hears_nothing() -> None:
    overrides = (*SMALL, "decoder=none", "sampling.steps=2")
    model = load_pipeline(
        "wan-1.3b-longlive", "cpu", wan=WanOptions(random_weights=True, overrides=overrides)
    )
    session = model.open(RED, decode=False)
    with pytest.raises(InputError, match="without a picture decoder"):
        session.listen(clip(9))
    with pytest.raises(InputError, match="without a picture decoder"):
        session.feed(clip(9))


def test_settings_of_streams_of_before_are_told_as_before() -> None:
    from streamgen.stream.settings import StreamSettings

    assert "strength" not in StreamSettings().to_json()
    assert "strength" in StreamSettings(strength=0.6).to_json()
    assert LISTENING["strength"] != StreamSettings().strength
