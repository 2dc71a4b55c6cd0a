"""Randomly steered streams, bit-exact through snapshot, fork, resume and replay, failures at random lines
included.

Each number is another stream: plan, position mode, recache mode, family, start, events of all kinds at random
chunks, `KeyboardInterrupt` at random lines of random chunks. 4 run every day, 40 in the slow tier;
`STEERED=500` with `-m soak` runs as many as one likes (docs/decisions/stream.md has what that gave).
"""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.context import ChunkPlan
from streamgen import Pipeline, Session, StreamEvent, Timeline, TrackSet, load_pipeline
from streamgen.motion.tracks import camera, drag, pins
from streamgen.stream.recache import ByChunk
from streamgen.wan.options import WanOptions
from tests.streamgen.stream.test_interruptions import Interrupter, traced
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL

PROMPTS = ("a red circle", "a blue star over sand", "the sea", "a star drifts right")
PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(2, 1, 3, 4), ChunkPlan(2, 2, 2, 4), ChunkPlan(3, 3, 0, 6))
WAN = ("wan-1.3b-longlive", "wan-1.3b-self-forcing", "wan-1.3b-motion")
CHUNKS = 10


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pipeline]:
    made: dict[str, Pipeline] = {}

    def get(name: str) -> Pipeline:
        if name not in made:
            if name.startswith("wan"):
                small = (*SMALL, "decoder=tiny", "sampling.steps=2")
                made[name] = load_pipeline(name, "cpu", wan=WanOptions(random_weights=True, overrides=small))
            else:
                folder = tmp_path_factory.mktemp(f"plan{name}")
                made[name] = load_pipeline(write_checkpoint(folder, PLANS[int(name)], steps=1))
        return made[name]

    return get


def opened(pipeline: Pipeline, draw: random.Random) -> dict[str, Any]:
    """Arguments that a stream opens with."""
    plan = pipeline.plan
    mode = draw.choice(("chunks", "joint"))
    settings: dict[str, Any] = {"recache_mode": mode, "rope": draw.choice(("relative", "absolute"))}
    if plan.sink_frames % plan.chunk_frames:
        settings["sink_policy"] = "keep"
    if draw.random() < 0.5:
        settings["context_noise"] = 0.1
    out: dict[str, Any] = {"prompt": draw.choice(PROMPTS), "seed": draw.randrange(100), "settings": settings}
    if pipeline.motion_encoder is not None and draw.random() < 0.5:
        out["motion"] = drag((0.1, 0.2), (0.8, 0.7), 30)
    if pipeline.name.startswith("wan"):
        # pictures are costly, and the same to a session
        out["decode"] = draw.random() < 0.1
    if out.get("decode", True) and draw.random() < 0.3:
        geometry = pipeline.geometry
        frames = geometry.frames(plan.length(0) + draw.choice((0, plan.chunk_frames)))
        generator = torch.Generator().manual_seed(draw.randrange(100))
        shape = (frames, geometry.height, geometry.width, 3)
        out["video"] = torch.randint(0, 255, shape, dtype=torch.uint8, generator=generator)
    return out


def event_of(session: Session, draw: random.Random) -> StreamEvent:
    """Some change."""
    tracks = session.model.motion_encoder is not None
    kinds = ["words", "passage", "action", "settings"]
    kinds += ["drag", "pins", "camera", "let go"] if tracks else []
    kind = draw.choice(kinds)
    refresh = session.state.latents.ring.plan.sink_frames % session.state.latents.ring.plan.chunk_frames == 0
    sink = draw.choice((None, "keep", *(["refresh"] if refresh else [])))
    action = draw.choice((None, "recache", "keep", "clear", "rebuild"))
    if kind == "words":
        motion = drag((0.2, 0.8), (0.7, 0.1), 9) if tracks and draw.random() < 0.3 else None
        return StreamEvent(draw.choice(PROMPTS), motion, cache=action, sink=sink)
    if kind == "passage":
        way = draw.choice(("linear", "spherical"))
        over = {"chunks": draw.choice((2, 3, 5)), "every": draw.choice((1, 2, 9)), "way": way}
        cache = draw.choice((None, "recache", "keep"))
        if draw.random() < 0.5:
            return StreamEvent(draw.choice(PROMPTS), cache=cache, sink=sink, over=over)
        blend = [(prompt, draw.random()) for prompt in draw.sample(PROMPTS, 2)]
        return StreamEvent(blend=blend, cache=cache, sink=sink, over=draw.choice((None, over)))
    if kind == "action":
        return StreamEvent(cache=action or "recache", sink=sink)
    if kind == "settings":
        guidance = draw.choice((1.0, 1.5, 3.0))
        return StreamEvent(settings={"text_guidance": guidance, "context_noise": draw.choice((0.0, 0.2))})
    if kind == "let go":
        return StreamEvent(motion=TrackSet.empty(0))
    made = {
        "drag": lambda: drag((0.5, 0.5), (draw.random(), draw.random()), draw.choice((5, 20))),
        "pins": lambda: pins([(0.2, 0.2), (0.9, 0.9)], 40),
        "camera": lambda: camera(frames=12, pan=(0.2, 0.1)),
    }[kind]()
    return StreamEvent(gestures={kind: made})


def script_of(number: int, session: Session) -> list[tuple[list[StreamEvent], bool]]:
    """For each chunk the events submitted before it, and whether it is interrupted."""
    draw = random.Random(number)
    return [
        ([event_of(session, draw) for _ in range(draw.choice((0, 0, 0, 1, 1, 2)))], draw.random() < 0.3)
        for _ in range(CHUNKS)
    ]


def run(session: Session, script: list[tuple[list[StreamEvent], bool]], draw: random.Random | None) -> Tensor:
    """All latents; with `draw`, interrupted where the script says so."""
    parts: list[Tensor] = []
    for events, interrupted in script:
        for event in events:
            session.submit(event)
        if interrupted and draw is not None:
            # at one of the lines that a twin runs through
            seen, twin = Interrupter(), session.fork()
            traced(lambda twin=twin: next(twin), seen)
            place = Interrupter(draw.choice(sorted(seen.seen)))
            if not traced(lambda: parts.append(next(session).latents), place):
                continue
        parts.append(next(session).latents)
    return torch.cat(parts, 1)


def bit_exact(number: int, pipelines: Callable[[str], Pipeline], folder: Path) -> None:
    """One stream: plain, interrupted, through every kind of copy, and replayed."""
    draw = random.Random(10_000 + number)
    name = WAN[number // 4 % len(WAN)] if number % 4 == 3 else str(number % len(PLANS))
    pipeline = pipelines(name)
    how = opened(pipeline, draw)
    session = pipeline.open(**how)
    script = script_of(number, session)
    middle = draw.randrange(2, CHUNKS - 2)
    parts = [run(session, script[:middle], None)]
    for event in script[middle][0]:
        session.submit(event)
    rest = [([], script[middle][1]), *script[middle + 1 :]]
    snapshot, fork = session.snapshot(), session.fork()
    session.save(folder / f"{number}")
    parts.append(run(session, rest, None))
    frames = torch.cat(parts, 1)
    expected = parts[1]
    session_timeline = session.timeline.to_json()
    resumed = pipeline.resume(folder / f"{number}")
    for what, copy in (("fork", fork), ("resume", resumed)):
        assert torch.equal(run(copy, rest, None), expected), (number, what)
        assert copy.timeline.to_json() == session_timeline, (number, what)
    session.restore(snapshot)
    assert torch.equal(run(session, rest, random.Random(number)), expected), (number, "interrupted")
    assert session.timeline.to_json() == session_timeline, (number, "interrupted")
    again = pipeline.replay(Timeline.from_json(session_timeline), video=how.get("video"))
    assert torch.equal(torch.cat([next(again).latents for _ in range(CHUNKS)], 1), frames), (number, "replay")


@pytest.mark.parametrize("number", range(4))
def test_a_steered_stream_is_bit_exact(
    number: int, pipelines: Callable[[str], Pipeline], tmp_path: Path
) -> None:
    bit_exact(number, pipelines, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4, 40))
def test_a_steered_stream_is_bit_exact_forty(
    number: int, pipelines: Callable[[str], Pipeline], tmp_path: Path
) -> None:
    bit_exact(number, pipelines, tmp_path)


@pytest.mark.soak
def test_many_steered_streams(pipelines: Callable[[str], Pipeline], tmp_path: Path) -> None:
    for number in range(40, int(os.environ.get("STEERED", "500"))):
        bit_exact(number, pipelines, tmp_path)
        (tmp_path / f"{number}").unlink()


@pytest.mark.slow
def test_bit_exactness_needs_the_record(
    pipelines: Callable[[str], Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild at another noise level each time does not replay."""
    rebuild, calls = ByChunk.rebuild, [0]

    def forgetful(self: ByChunk, runner: Any, state: Any, *rest: Any) -> Any:
        calls[0] += 1
        level = 0.2 + 0.5 / calls[0]
        state = replace(state, context=tuple(replace(c, sigma=level) for c in state.context))
        return rebuild(self, runner, state, *rest)

    def check() -> None:
        for number in (0, 8):
            bit_exact(number, pipelines, tmp_path)

    assert_needs(check, monkeypatch, ByChunk, "rebuild", forgetful)
