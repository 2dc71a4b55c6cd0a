"""A stream that is told what its input shows: what its own words do not change stays."""

import pytest
import torch
from torch import Tensor

from models.context import ChunkPlan
from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.engine.source import Source
from tests.live_input import clip, latents_of, listening
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model"), ChunkPlan(3, 2, 2, 6), steps=2))


@pytest.mark.parametrize("sampler", ["renoise", "euler"])
def test_under_the_same_words_the_input_comes_back(
    sampler: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the strength, up to what a random network makes of rounding; under others it does not."""
    frames = clip(60)

    def check() -> None:
        for strength in (0.9, 1.0):
            settings = {"sampler": sampler, "strength": strength}
            told = listening(pipeline, frames, settings=settings | {"input_prompt": RED}, runner="plain")
            source = sources(monkeypatch)
            made = latents_of(told, 4)
            assert float((made - torch.cat(source, 1)).abs().max()) < 0.05
            other = listening(pipeline, frames, settings=settings | {"input_prompt": BLUE}, runner="plain")
            assert float((latents_of(other, 4) - made).abs().max()) > 0.3

    assert_needs(check, monkeypatch, Source, "likened", lambda self, made, seen, noise: made)


def sources(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The latents of the input of each chunk from here on."""
    found: list[Tensor] = []
    noised = Source.noised

    def noted(self: Source, noise: Tensor, sigma: float) -> Tensor:
        if not any(self.latents is one for one in found):
            found.append(self.latents)
        return noised(self, noise, sigma)

    monkeypatch.setattr(Source, "noised", noted)
    return found


def test_words_of_the_input_are_an_event_and_a_replay_has_them(pipeline: Pipeline) -> None:
    frames = clip(80)
    session = listening(pipeline, frames)
    first = latents_of(session, 2)
    receipt = session.submit(StreamEvent(BLUE, settings={"input_prompt": RED}))
    made = torch.cat([first, latents_of(session, 3)], 1)
    assert receipt.status == "applied"
    again = pipeline.replay(session.timeline)
    again.listen(frames)
    assert torch.equal(latents_of(again, 5), made)
    plain = listening(pipeline, frames)
    next(plain)
    next(plain)
    plain.submit(StreamEvent(BLUE))
    assert not torch.equal(latents_of(plain, 3), made[:, first.shape[1] :])


def test_words_that_cannot_be_are_refused_in_one_line(pipeline: Pipeline) -> None:
    for value, message in ((3, "expected str, found 3"), ("x" * 10_001, "at most 10000 characters")):
        with pytest.raises(InputError, match=f"input_prompt: .*{message}") as caught:
            pipeline.open(RED, settings={"input_prompt": value})
        assert "\n" not in str(caught.value)
