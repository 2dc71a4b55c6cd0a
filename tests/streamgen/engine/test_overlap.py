"""Chunks that overlap: commit-ahead is the plain runner, and a wave what its definition says."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.context import ChunkPlan, MaskedContext, SequenceFrame
from models.frontier import FrontierContext
from streamgen import InputError, Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.guidance import Conditioning, Guidance
from streamgen.engine.noise import SeededNoise
from streamgen.engine.overlap import ahead
from streamgen.engine.overlap import wave as waves
from streamgen.engine.overlap.passing import Passing
from streamgen.engine.overlap.wave import Begun, WaveRunner, shares
from streamgen.engine.parallel.mesh import Mesh
from streamgen.engine.runner import CommitTask, DenoiseTask, PlainRunner
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import add_noise
from streamgen.motion.tracks import drag
from tests.command_line import ROOT, call, environment
from tests.streams import BLUE, RED, changed_latents
from tests.thread_mesh import CPU, together
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import GRID, assert_needs, tiny_dit, tiny_ring

PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(2, 1, 3, 4))
#: Plans of pipelines, and how far patches lie apart where they overlap.
KINDS = (*((plan, None) for plan in PLANS), (PLANS[0], 1))
UNGUIDED = {"text_guidance": 1.0, "motion_guidance": 0.0}
SIGMAS = (1.0, 0.8, 0.5, 0.0)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    torch.set_num_threads(1)
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"kind{i}"), plan, 3, patch_stride=stride))
        for i, (plan, stride) in enumerate(KINDS)
    ]


def steered(session: Session, chunks: int = 14) -> list[Tensor]:
    """Latents of a stream with a drag, a recache, a scene of its own, and words without a recache."""
    changes: dict[int, StreamEvent] = {
        2: StreamEvent(motion=drag((0.2, 0.3), (0.8, 0.7), 40)),
        4: StreamEvent(prompt=BLUE),
        7: StreamEvent(prompt=RED, cache="clear", settings={"context_noise": 0.1}),
        10: StreamEvent(prompt=BLUE, cache="keep"),
    }
    return changed_latents(session, changes, chunks)


def farthest(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.std()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("plan", range(len(KINDS)))
@pytest.mark.parametrize("rope", ["relative", "absolute"])
def test_a_commit_beside_the_next_step_is_the_commit_before_it(
    plan: int, rope: str, pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, settings = pipelines[plan], UNGUIDED | {"rope": rope}
    passes = 0
    forward = CausalDiT.forward

    def counted(self: CausalDiT, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal passes
        passes += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CausalDiT, "forward", counted)
    plain = steered(pipeline.open(RED, settings=settings, runner="plain", decode=False))
    alone, passes = passes, 0

    def check() -> None:
        made = steered(pipeline.open(RED, settings=settings, runner="ahead", decode=False))
        assert farthest(made, plain) < ahead.TOLERANCE

    check()
    # one less for each chunk, but for the first of each scene and the one behind the rebuilt cache
    assert alone - passes == len(plain) - 3
    if plan == 0 and rope == "relative":
        assert_needs(check, monkeypatch, FrontierContext, "_commit", lambda *args: None)


def test_what_takes_several_predictions_is_committed_by_itself(pipelines: list[Pipeline]) -> None:
    """Bit for bit: nothing is computed together."""
    streams = [pipelines[0].open(RED, runner=name, decode=False) for name in ("plain", "ahead")]
    plain, other = (steered(stream, 6) for stream in streams)
    assert all(torch.equal(*pair) for pair in zip(plain, other, strict=True))


def test_a_snapshot_goes_from_commit_ahead_to_plain(pipelines: list[Pipeline]) -> None:
    session = pipelines[0].open(RED, settings=UNGUIDED, runner="ahead", decode=False)
    steered(session, 6)
    snapshot = session.snapshot()
    assert snapshot.meta["runner"] == "ahead"
    more = [next(session).latents for _ in range(3)]
    again = Session.of(pipelines[0], snapshot, pipelines[0].runner("ahead"))
    assert all(torch.equal(next(again).latents, expected) for expected in more)
    plain = Session.of(pipelines[0], snapshot, pipelines[0].runner("plain"))
    assert farthest([next(plain).latents for _ in range(3)], more) < ahead.TOLERANCE


class Definition:
    """The wave as it is defined, without a cache: in each tick one forward over all frames since the start,
    clean ones at level 0 and those in work at theirs, under the mask of the chunk plan.
    """

    def __init__(self, dit: CausalDiT, plan: ChunkPlan, text: TextContext, noise: SeededNoise) -> None:
        self.dit, self.plan, self.text, self.noise = dit, plan, text, noise

    def run(self, chunks: int, stagger: int, relative: bool) -> list[Tensor]:
        clean: list[Tensor] = []
        work: list[tuple[int, int, Tensor]] = []
        while len(clean) < chunks:
            if not work or (clean and work[-1][1] >= stagger):
                index = len(clean) + len(work)
                work.append((index, 0, self.noise.initial(index, self._shape(index))))
            velocity = self._forward(clean, work, relative)
            after = []
            for (index, step, x), v in zip(work, velocity, strict=True):
                sigma, following = list(pairwise(SIGMAS))[step]
                x = x - sigma * v
                if following:
                    x = add_noise(x, self.noise.renoise(index, step, tuple(x.shape)), following)
                after.append((index, step + 1, x))
            if after[0][1] == len(SIGMAS) - 1:
                clean.append(after.pop(0)[2])
            work = after
        return clean

    def _shape(self, index: int) -> tuple[int, ...]:
        return (1, self.plan.length(index), 4, *self.dit.config.patches.cells(GRID))

    def _forward(self, clean: list[Tensor], work: list[tuple[int, int, Tensor]], relative: bool) -> Any:
        x = torch.cat([*clean, *(each[2] for each in work)], 1)
        context = MaskedContext(
            self.dit.rope, [SequenceFrame(i) for i in range(x.shape[1])], self.plan, GRID, CPU, relative
        )
        levels = torch.zeros(1, x.shape[1])
        lengths = [each[2].shape[1] for each in work]
        told = [torch.full((n,), 1000 * SIGMAS[step]) for n, (_, step, _) in zip(lengths, work, strict=True)]
        levels[0, x.shape[1] - sum(lengths) :] = torch.cat(told)
        with torch.no_grad():
            velocity = self.dit(x, levels, self.text, context)
        return velocity[:, x.shape[1] - sum(lengths) :].split(lengths, 1)


def driven(
    runner: WaveRunner, plan: ChunkPlan, text: TextContext, noise: SeededNoise, chunks: int, relative: bool
) -> list[Tensor]:
    """The same chunks by a runner over a ring."""
    ring = tiny_ring(runner.dit, plan, rope_mode="relative" if relative else "absolute")
    cursor, due = ring.emptied(), None
    clean: list[Tensor] = []
    begun: tuple[Begun, ...] = ()
    conditioning = Conditioning(text, text, None, Guidance(1.0, 0.0))
    while len(clean) < chunks:
        if not begun or (clean and begun[-1].step >= runner.stagger):
            index = len(clean) + len(begun)
            place = (ring, cursor, index, plan.length(index))
            task = DenoiseTask(*place, conditioning, noise, Sampling(SIGMAS, renoise=True))
            begun = (*begun, runner.begin(task))
        begun = runner.tick(ring, cursor, due, begun)
        cursor = cursor if due is None else cursor.moved(due.frames)
        due = None
        if not begun[0].left:
            clean.append(begun[0].x)
            levels = (0.0,) * begun[0].frames
            due, begun = CommitTask(ring, cursor, begun[0].x, levels, text, None), begun[1:]
    return clean


@pytest.mark.parametrize("plan", [*PLANS, ChunkPlan(1, 1, 2, 2)])
@pytest.mark.parametrize(("name", "relative"), [("wave", True), ("wave-2", True), ("wave", False)])
def test_a_wave_is_what_its_definition_gives(
    plan: ChunkPlan, name: str, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dit, noise = tiny_dit(motion_channels=0), SeededNoise(3, CPU)
    text = dit.embed_text(torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        text = text.detached()
    expected = Definition(dit, plan, text, noise).run(12, waves.WAVES[name], relative)
    runner = WaveRunner(name, dit, None, None, len(SIGMAS) - 1)

    def check() -> None:
        assert farthest(driven(runner, plan, text, noise, 12, relative), expected) < 1e-4

    if plan is not PLANS[0]:
        check()
        return

    def blind(self: FrontierContext, start: int, frames: int, first: int) -> Any:
        """Without the chunks in work before it."""
        reach, n = reached(self, start, frames, first), self.ring.shape.tokens
        return type(reach)(
            **vars(reach) | {"flight": slice((start - self.cursor.frames) * n, reach.flight.stop)}
        )

    reached = FrontierContext._reach
    assert_needs(check, monkeypatch, FrontierContext, "_reach", blind)


@pytest.mark.parametrize("relative", [True, False])
def test_a_wave_of_overlapping_patches_is_what_its_definition_gives(relative: bool) -> None:
    dit, noise = tiny_dit(motion_channels=0, patch_stride=1), SeededNoise(3, CPU)
    with torch.no_grad():
        text = dit.embed_text(torch.randn(1, 5, 8, generator=torch.manual_seed(1))).detached()
    expected = Definition(dit, PLANS[0], text, noise).run(8, waves.WAVES["wave"], relative)
    made = driven(WaveRunner("wave", dit, None, None, len(SIGMAS) - 1), PLANS[0], text, noise, 8, relative)
    assert farthest(made, expected) < 1e-4


@pytest.mark.parametrize(("size", "kind"), [(2, 0), (3, 0), (2, 2)])
def test_several_processes_make_what_one_makes(
    size: int, kind: int, pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines[kind]
    alone = pipeline.open(RED, settings=UNGUIDED, runner="wave")
    expected = steered(alone)
    more = next(alone)

    def work(mesh: Mesh) -> Any:
        session = Pipeline(pipeline.parts, runner="wave", mesh=mesh).open(RED, settings=UNGUIDED)
        return steered(session), next(session)

    def check() -> None:
        made = together(size, work)
        for latents, _ in made:
            assert all(torch.equal(*pair) for pair in zip(latents, made[0][0], strict=True))
        assert farthest(made[0][0], expected) < waves.TOLERANCE
        # pictures are the first one's; the others count them
        shown = [chunk.frames for _, chunk in made]
        assert int((shown[0].int() - more.frames.int()).abs().max()) <= 1
        assert all(frames.shape == shown[0].shape and not frames.any() for frames in shown[1:])

    if size == 3:
        check()
        return
    joined = Passing.joined

    def cold(self: Passing, layer: int, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        keys, values = joined(self, layer, k, v)
        keys[:, : self.shape[1]] = 0
        return keys, values

    assert_needs(check, monkeypatch, Passing, "joined", cold)


def test_passes_are_shared_out_evenly() -> None:
    """The first process decodes besides, and every pass is somebody's."""
    assert shares(5, 2) == [0, 2, 5]
    assert shares(1, 2) == [0, 1, 1]
    assert shares(5, 5) == [0, 1, 2, 3, 4, 5]
    assert shares(4, 1) == [0, 4]
    for members in range(1, 9):
        for size in range(1, 6):
            bounds = shares(members, size)
            assert (bounds[0], bounds[-1], len(bounds)) == (0, members, size + 1)
            assert bounds == sorted(bounds)


def test_an_event_takes_effect_with_the_next_chunk_that_has_not_begun(pipelines: list[Pipeline]) -> None:
    session = pipelines[0].open(RED, settings=UNGUIDED, runner="wave", decode=False)
    for _ in range(4):
        shown = next(session)
    # shown: 3; in work: 4 and 5
    assert (shown.index, [each.begun.index for each in session.state.flight]) == (3, [4, 5])
    keep = session.submit(StreamEvent(prompt=BLUE, cache="keep"))
    chunks = [next(session)]
    assert (keep.status, keep.chunk, keep.frame) == ("applied", 6, session.geometry.frames(6))
    chunks += [next(session) for _ in range(2)]
    assert [len(chunk.receipts) for chunk in chunks] == [0, 0, 1]
    words = [chunk.text.prompt for chunk in session.state.latents.recent if chunk.text is not None]
    assert words[-3:] == [RED, RED, BLUE]
    # a rebuilt cache holds all that has begun
    recache = session.submit(StreamEvent(prompt=RED))
    waiting = [each.begun.index for each in session.state.flight]
    chunks = [next(session) for _ in range(len(waiting) + 1)]
    assert [chunk.index for chunk in chunks] == [*waiting, waiting[-1] + 1]
    assert [chunk.recached for chunk in chunks] == [False] * len(waiting) + [True]
    assert recache.chunk == waiting[-1] + 1
    assert len(session.timeline.events) == 3


def test_a_wave_is_the_same_after_a_failure_at_any_tick(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines[0]
    expected = steered(pipeline.open(RED, settings=UNGUIDED, runner="wave", decode=False))
    session = pipeline.open(RED, settings=UNGUIDED, runner="wave", decode=False)
    forward, calls = CausalDiT.forward, 0

    def failing(self: CausalDiT, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        result = forward(self, *args, **kwargs)
        if calls % 7 == 0:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(CausalDiT, "forward", failing)
    take = type(session).__next__

    def stubborn(self: Session) -> Any:
        while True:
            try:
                return take(self)
            except KeyboardInterrupt:
                continue

    monkeypatch.setattr(Session, "__next__", stubborn)
    assert all(torch.equal(*pair) for pair in zip(steered(session), expected, strict=True))
    assert calls > 30


def test_chunks_of_fewer_steps_do_not_overtake(pipelines: list[Pipeline]) -> None:
    session = pipelines[0].open(RED, settings=UNGUIDED, runner="wave", decode=False)
    made = []
    for chunk in range(12):
        if chunk in (3, 6):
            session.submit(StreamEvent(settings={"budget_steps": 1 if chunk == 3 else 3}))
        made.append(next(session))
    assert [chunk.index for chunk in made] == list(range(12))
    assert {1, 3} <= {chunk.steps for chunk in made}


def test_what_cannot_overlap(
    pipelines: list[Pipeline], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = pipelines[0]
    with pytest.raises(InputError, match="runner wave: steps of several predictions"):
        next(pipeline.open(RED, runner="wave", decode=False))
    session = pipeline.open(RED, settings=UNGUIDED, runner="wave")
    next(session), next(session)
    with pytest.raises(InputError, match="snapshot: chunks of this stream overlap"):
        session.snapshot()
    with pytest.raises(InputError, match="input: not on runner wave"):
        session.listen()
    with pytest.raises(InputError, match="deadline: not on runner wave"):
        pipeline.open(RED, settings=UNGUIDED, runner="wave", deadline_ms=50)
    with pytest.raises(InputError, match="5 processes: runner wave has at most 4 passes in a tick"):
        Pipeline(pipeline.parts, runner="wave", mesh=Mesh(0, 5, CPU))
    with pytest.raises(InputError, match="runner ahead: not over 2 processes, expected plain or wave"):
        Pipeline(pipeline.parts, runner="ahead", mesh=Mesh(0, 2, CPU))
    assert PlainRunner.commits_ahead is False
    model = write_checkpoint(tmp_path / "model", PLANS[0])
    done = call(
        capsys, "render", RED, "-o", tmp_path / "a.mp4", "--model", model, "--runner", "wave",
        "--save-state", tmp_path / "s",
    )  # fmt: skip
    assert done.code == 2
    assert "--save-state: not here, chunks of runner wave overlap" in done.error()


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over gloo: one video, of the pictures that one process makes."""
    model = write_checkpoint(tmp_path / "model", PLANS[0], steps=3)
    options = ["--model", model, "--seconds", 1, "--at", f"0.5:{BLUE}", "--threads", 1, "-q", "--png"]
    options += ["--runner", "wave", "--set", "text_guidance=1", "--set", "motion_guidance=0"]
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    assert call(capsys, "render", RED, "-o", one, *options).code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "streamgen", "render", RED, "-o", str(two), *map(str, options)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.with_suffix(".json").read_text()) for path in (one, two)]
    assert [(record["runner"], record["processes"]) for record in records] == [("wave", 1), ("wave", 2)]
    assert records[0]["receipts"] == records[1]["receipts"]
    folders = [sorted(path.with_suffix(".frames").iterdir()) for path in (one, two)]
    assert [file.name for file in folders[0]] == [file.name for file in folders[1]]
    for first, second in zip(*folders, strict=True):
        assert np.abs(np.asarray(Image.open(first)).astype(int) - np.asarray(Image.open(second))).max() <= 1
