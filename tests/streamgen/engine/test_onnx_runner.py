"""The ONNX runner makes what the plain one makes, within its tolerance, and is bit-exact with itself; what
the two share (ring, snapshots) goes from one to the other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.context import ChunkPlan
from models.kv_cache import CacheView
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen import Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.decoder import DecoderState, StreamingDecoder
from streamgen.engine.onnx import runner as onnx_runner
from streamgen.engine.onnx.runner import TOLERANCE, ChunkPass, OnnxRunner
from streamgen.motion.tracks import drag
from tests.streams import BLUE, RED, context_keys
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs, randomize, tiny_dit

PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(3, 2, 2, 6), ChunkPlan(2, 2, 4, 2))
CHUNKS = 9


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"plan{i}"), plan, steps=2))
        for i, plan in enumerate(PLANS)
    ]


def steered(session: Session, chunks: int = CHUNKS) -> list[tuple[Tensor, Tensor]]:
    """Latents and pictures of a stream with a drag, a switch, a scene of its own and sliders."""
    changes: dict[int, StreamEvent] = {
        2: StreamEvent(motion=drag((0.2, 0.3), (0.8, 0.7), 40)),
        4: StreamEvent(prompt=BLUE),
        6: StreamEvent(prompt=RED, cache="clear", settings={"text_guidance": 1.5, "context_noise": 0.1}),
    }
    made = []
    for chunk in range(chunks):
        if chunk in changes:
            session.submit(changes[chunk])
        out = next(session)
        assert all(receipt.status == "applied" for receipt in out.receipts)
        made.append((out.latents, out.frames))
    return made


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in standard deviations of what is expected."""
    return float((found - expected).abs().max() / expected.std())


def agree(found: list[tuple[Tensor, Tensor]], expected: list[tuple[Tensor, Tensor]]) -> None:
    for (latents, frames), (plain_latents, plain_frames) in zip(found, expected, strict=True):
        assert difference(latents, plain_latents) < TOLERANCE
        assert int((frames.int() - plain_frames.int()).abs().max()) <= 1


@pytest.mark.parametrize("plan", range(len(PLANS)))
@pytest.mark.parametrize(
    "settings", [{}, {"rope": "absolute"}, {"text_guidance": 1.0, "motion_guidance": 0.0}]
)
def test_steered_streams_agree_with_plain(
    plan: int, settings: dict[str, Any], pipelines: list[Pipeline]
) -> None:
    """Evictions, a ring that turns within a chunk, guidance in three branches, a recache, a scene's start."""
    pipeline = pipelines[plan]
    plain = pipeline.open(RED, settings=settings, runner="plain")
    onnx = pipeline.open(RED, settings=settings, runner="onnx")
    assert isinstance(onnx.runner, OnnxRunner)
    agree(steered(onnx), steered(plain))
    assert difference(context_keys(onnx), context_keys(plain)) < TOLERANCE
    # with itself it is bit-exact
    again = pipeline.open(RED, settings=settings, runner="onnx")
    steered(again)
    assert torch.equal(context_keys(again), context_keys(onnx))


def test_overlapping_patches_agree_with_plain(tmp_path: Path) -> None:
    """A network whose tokens lie closer than its patches are wide, by the ways that passes are computed."""
    pipeline = load_pipeline(write_checkpoint(tmp_path, PLANS[1], patch_stride=1))
    assert pipeline.geometry.token_grid == (3, 3)
    plain = steered(pipeline.open(RED, runner="plain"))
    agree(steered(pipeline.open(RED, runner="onnx")), plain)
    agree(steered(pipeline.open(RED, runner="ahead")), plain)


def test_stale_buffers_and_wrong_fill_levels_are_found(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines[0]
    expected = steered(pipeline.open(RED, runner="plain"))
    read = onnx_runner.Binding.reads
    first: dict[tuple[int, str], Tensor] = {}

    def check() -> None:
        agree(steered(pipeline.open(RED, runner="onnx")), expected)

    def stale(name: str) -> Callable[..., None]:
        def reads(self: onnx_runner.Binding, place: str, x: Tensor, *shape: Any) -> None:
            # as a program would that keeps what it was first given
            kept = first.setdefault((id(self.program), name), x.clone()) if place == name else x
            read(self, place, kept if kept.shape == x.shape else x, *shape)

        return reads

    for name in ("x", "modulation", "cos", "base", "text_key.1", "text_value.0", "keys", "values"):
        first.clear()
        assert_needs(check, monkeypatch, onnx_runner.Binding, "reads", stale(name))
    past, scatter = CacheView.past, ChunkPass._bind_own

    def short(self: CacheView) -> list[slice]:
        return past(self)[:1]

    def elsewhere(self: ChunkPass, layer: int, tokens: int, dim: int) -> None:
        scatter(self, layer, tokens, dim)
        self.binding.writes(f"value.{layer}", torch.empty(1, tokens, dim))

    assert_needs(check, monkeypatch, CacheView, "past", short)
    assert_needs(check, monkeypatch, ChunkPass, "_bind_own", elsewhere)


def test_snapshots_cross_runners(pipelines: list[Pipeline], tmp_path: Path) -> None:
    pipeline = pipelines[1]
    session = pipeline.open(RED, runner="onnx")
    for _ in range(5):
        next(session)
    session.save(tmp_path / "state")
    assert session.snapshot().meta["runner"] == "onnx"
    assert session.snapshot().meta["threads"] == torch.get_num_threads()
    own, plain = pipeline.resume(tmp_path / "state"), pipeline.resume(tmp_path / "state", runner="plain")
    assert (own.runner.name, plain.runner.name) == ("onnx", "plain")
    for _ in range(3):
        ahead, same, other = next(session).latents, next(own).latents, next(plain).latents
        assert torch.equal(ahead, same)
        assert difference(other, ahead) < TOLERANCE


def test_a_failure_in_any_pass_leaves_the_stream(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before and after each pass of a chunk with a recache: the next try gives what there would have
    been.
    """
    pipeline, run = pipelines[0], onnx_runner.Binding.run
    session = pipeline.open(RED, runner="onnx")
    for _ in range(5):
        next(session)
    start = session.snapshot()
    session.submit(StreamEvent(prompt=BLUE))
    expected = [next(session).latents for _ in range(3)]
    passes = 0
    for after in (False, True):
        for place in range(100):
            other = Session.of(pipeline, start, session.runner)
            other.submit(StreamEvent(prompt=BLUE))
            count = iter(range(1000))

            def broken(self: onnx_runner.Binding, count: Any = count, place: int = place) -> None:
                hit = next(count) == place
                if not hit or after:  # noqa: B023
                    run(self)
                if hit:
                    raise KeyboardInterrupt

            monkeypatch.setattr(onnx_runner.Binding, "run", broken)
            try:
                next(other)
                break
            except KeyboardInterrupt:
                passes += 1
            monkeypatch.setattr(onnx_runner.Binding, "run", run)
            assert other.pending
            for latents in expected:
                assert torch.equal(next(other).latents, latents)
        monkeypatch.setattr(onnx_runner.Binding, "run", run)
    # four commits, two steps of two branches each, one decode
    assert passes == 2 * (4 + 2 * 2 + 1)


def test_two_streams_in_turns_are_what_each_is_alone(pipelines: list[Pipeline]) -> None:
    pipeline = pipelines[0]
    alone = [[next(session).latents for _ in range(6)] for session in opened_twice(pipeline)]
    first, second = opened_twice(pipeline)
    for one, two in zip(*alone, strict=True):
        assert torch.equal(next(first).latents, one)
        assert torch.equal(next(second).latents, two)


def opened_twice(pipeline: Pipeline) -> list[Session]:
    return [pipeline.open(prompt, seed, runner="onnx") for seed, prompt in enumerate((RED, BLUE))]


def test_the_shipped_model_agrees_with_plain() -> None:
    """Strengths of guidance as an input, commits at a context noise level."""
    pipeline = load_pipeline("tiny")
    session = pipeline.open("a small red circle moves right over the sea", runner="plain")
    for chunk in range(5):
        if chunk == 2:
            session.submit(StreamEvent(prompt="a large blue star stays over sand"))
        # each from the same state: what rounding makes of a whole stream has no bound
        other = Session.of(pipeline, session.snapshot(), pipeline.runner("onnx"))
        expected, found = next(session), next(other)
        agree([(found.latents, found.frames)], [(expected.latents, expected.frames)])


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("height", [48, 56])
def test_decoder_with_windows_that_do_not_fit(frames: int, height: int) -> None:
    """Norms of heads, rolled windows, grids that are padded to whole windows."""
    config = VideoTokenizerConfig(
        latent_channels=4, dim=16, heads=2, window=4, decoder_spatial=2, encoder_spatial=1,
        encoder_temporal=1, refine_channels=4, qk_norm=True,
    )  # fmt: skip
    tokenizer = VideoTokenizer(config)
    randomize(tokenizer)
    tokenizer.set_latent_statistics(torch.randn(2, 4), 1 + torch.rand(2, 4))
    plain, state = StreamingDecoder(tokenizer), DecoderState.initial(tokenizer)
    runner, other = OnnxRunner(tiny_dit(), tokenizer), state
    for i in range(5):
        latents = torch.randn(1, frames, 4, height // 8, 64 // 8, generator=torch.Generator().manual_seed(i))
        expected, state = plain.decode(latents, state)
        found, other = runner.decode(latents, other)
        assert int((found.int() - expected.int()).abs().max()) <= 1
        torch.testing.assert_close(other.tokenizer.keys, state.tokenizer.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.tokenizer.values, state.tokenizer.values, rtol=1e-4, atol=1e-4)
        assert (other.tokenizer.valid, other.latent_frames) == (state.tokenizer.valid, state.latent_frames)
