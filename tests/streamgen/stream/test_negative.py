"""`negative_prompt`: the null branch of guided streams, normalised attention guidance in the others; commits
go without it, events change it, and what cannot be is refused.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.causal_dit import Negative
from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.engine.program.compiled import ProgramRunner
from streamgen.engine.runner import PassRunner, PlainRunner
from streamgen.stream.session import Session
from streamgen.wan.options import WanOptions
from tests.streamgen.stream.test_texts import SlowWords, parts, slow  # noqa: F401  fixtures
from tests.streams import BLUE, RED
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL
from tests.waiting import wait_until

AWAY = "blurry water"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    options = WanOptions(random_weights=True, overrides=SMALL)
    return load_pipeline("wan-1.3b-self-forcing-steady", "cpu", wan=options)


def latents(session: Session, chunks: int = 1) -> Tensor:
    return torch.cat([next(session).latents for _ in range(chunks)], 1)


def reference(toward: Tensor, away: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """Normalised attention guidance, token by token, in float64 (arXiv 2505.21179)."""
    out = torch.empty_like(toward, dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in toward.shape[:-1])):
        z, n = toward[tuple(place)].double(), away[tuple(place)].double()
        guided = z + (scale - 1) * (z - n)
        ratio = float(guided.abs().sum() / z.abs().sum())
        if ratio > tau:
            guided = guided * tau / ratio
        out[tuple(place)] = alpha * guided + (1 - alpha) * z
    return out


@pytest.mark.parametrize(("scale", "tau", "alpha"), [(1.5, 2.5, 0.25), (9.0, 2.5, 0.25), (30.0, 1.2, 0.8)])
def test_guidance_is_that_of_the_paper(scale: float, tau: float, alpha: float) -> None:
    draw = torch.Generator().manual_seed(2)
    toward, away = (torch.randn(2, 5, 12, generator=draw) for _ in range(2))
    found = Negative((), (), scale, tau, alpha).guide(toward, away)
    torch.testing.assert_close(
        found.double(), reference(toward, away, scale, tau, alpha), atol=1e-5, rtol=1e-5
    )


def test_attention_turns_away(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        plain = latents(pipeline.open("a red boat", 1))
        away = latents(pipeline.open("a red boat", 1, settings={"negative_prompt": AWAY}))
        assert (plain - away).abs().max() > 1e-3
        other = latents(pipeline.open("a red boat", 1, settings={"negative_prompt": "a dog"}))
        assert not torch.equal(away, other)
        still = {"negative_prompt": AWAY, "negative_scale": 1.0}
        assert torch.equal(latents(pipeline.open("a red boat", 1, settings=still)), plain)

    assert_needs(check, monkeypatch, Negative, "guide", lambda self, toward, away: toward)


def test_chunks_enter_the_cache_without_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that start a stream are committed and not denoised: the cache is the same with and without."""
    clip = torch.randint(0, 255, (21, 32, 48, 3)).to(torch.uint8)

    def check() -> None:
        states = []
        for settings in ({}, {"negative_prompt": AWAY}):
            session = pipeline.open("a red boat", 1, video=clip, settings=settings)
            latents(session, 3)
            made = session.state.latents
            states.append(made.ring.state(made.cursor))
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    plain, calls = PlainRunner.commit, iter(range(100))

    def with_it(self: Any, task: Any) -> Any:
        turned = replace(task.text, negative=Negative(task.text.values, task.text.keys, 9.0))
        # the second stream's chunks
        return plain(self, task if next(calls) < 2 else replace(task, text=turned))

    assert_needs(check, monkeypatch, PlainRunner, "commit", with_it)


def test_guided_streams_compare_with_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    guided = {"text_guidance": 3.0}
    away = latents(pipeline.open("a red boat", 1, settings=guided | {"negative_prompt": AWAY}), 2)
    plain = latents(pipeline.open("a red boat", 1, settings=guided), 2)
    assert not torch.equal(away, plain)
    monkeypatch.setattr(pipeline, "_null_text", pipeline.text(AWAY).context)
    assert torch.equal(latents(pipeline.open("a red boat", 1, settings=guided), 2), away)


@pytest.mark.slow
def test_an_event_changes_it_and_a_replay_repeats_that(pipeline: Pipeline, tmp_path: Path) -> None:
    session = pipeline.open("a red boat", 1)
    latents(session, 2)
    twin, saved = session.fork(), session.snapshot()
    receipt = session.submit(StreamEvent(settings={"negative_prompt": AWAY}))
    expected = latents(session, 2)
    assert (receipt.status, receipt.chunk) == ("applied", 2)
    event = session.timeline.events[-1].event
    assert (event.settings, event.cache) == ({"negative_prompt": AWAY}, None)
    assert not torch.equal(latents(twin, 2), expected)
    assert torch.equal(latents(pipeline.replay(session.timeline), 4)[:, -6:], expected)
    session.save(tmp_path / "stream")
    assert torch.equal(latents(pipeline.resume(tmp_path / "stream")), latents(session))
    session.restore(saved)
    session.submit(StreamEvent(settings={"negative_prompt": AWAY}))
    assert torch.equal(latents(session, 2), expected)
    session.submit(StreamEvent(settings={"negative_prompt": ""}))
    next(session)
    assert "negative_prompt" not in session.controls.settings.to_json()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative_prompt": 3}, "setting negative_prompt: expected str, found 3"),
        ({"negative_prompt": "x" * 10_001}, "at most 10000 characters, found 10001"),
        ({"negative_scale": 0.5}, "negative_scale must be in 1..50"),
        ({"negative_scale": float("nan")}, "negative_scale must be in 1..50"),
    ],
)
def test_what_cannot_be_is_refused(pipeline: Pipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.open("a red boat", settings=settings)
    receipt = pipeline.open("a red boat").submit(StreamEvent(settings=settings))
    assert receipt.status == "refused"
    assert message in str(receipt.reason)


class OwnPasses(PassRunner):
    """A runner whose passes see the words alone."""

    name = "own"

    def network_pass(self, view: Any, text: Any, motion: Any) -> Any:
        return lambda x, timestep, strengths=None: torch.zeros_like(x)


def own_passes(pipeline: Pipeline) -> PlainRunner:
    return OwnPasses(pipeline.dit, pipeline.codec)


def programs(pipeline: Pipeline) -> PlainRunner:
    return ProgramRunner(pipeline.dit, pipeline.codec, compiler=lambda function: function)


@pytest.mark.parametrize("make", [own_passes, programs])
def test_runners_with_passes_of_their_own_compute_such_chunks_as_they_read(
    make: Callable[[Pipeline], PlainRunner], pipeline: Pipeline
) -> None:
    away = {"negative_prompt": AWAY}
    expected = latents(pipeline.open("a red boat", 1, settings=away, runner="plain"))
    assert torch.equal(
        latents(pipeline.open("a red boat", 1, settings=away, runner=make(pipeline))), expected
    )
    own = latents(pipeline.open("a red boat", 1, runner=make(pipeline)))
    assert not torch.equal(own, expected)


def test_slow_words_are_encoded_ahead_and_a_failure_refuses_the_event(
    slow: tuple[Pipeline, SlowWords],  # noqa: F811
) -> None:
    pipeline, prompts = slow
    session = pipeline.open(RED)
    receipt = session.submit(StreamEvent(settings={"negative_prompt": BLUE}))
    wait_until(lambda: session._queue.items[0].ready)
    assert BLUE in prompts.encoded
    next(session)
    assert receipt.status == "applied"
    prompts.failing.add("a large blue star")
    receipt = session.submit(StreamEvent(settings={"negative_prompt": "a large blue star"}))
    wait_until(lambda: session._queue.items[0].ready)
    next(session)
    assert receipt.status == "refused"
    assert "cannot be encoded (the encoder fell over)" in str(receipt.reason)
    assert session.controls.settings.negative_prompt == BLUE


def test_notes_on_words(pipeline: Pipeline) -> None:
    """Where they were cut, in tokens; and symbols alone."""
    session = pipeline.open("a red boat")
    receipt = session.submit(StreamEvent(prompt="a red boat on the calm open sea at noon"))
    next(session)
    assert (receipt.dropped, receipt.note) == (4, 'cut before "open sea at noon"')
    receipt = session.submit(StreamEvent(prompt="!!! ... ☀ 🎉"))
    assert (
        receipt.note == "the prompt has neither letters nor digits: what symbols mean to a model is not known"
    )
    assert session.submit(StreamEvent(prompt="雨の海")).note is None
