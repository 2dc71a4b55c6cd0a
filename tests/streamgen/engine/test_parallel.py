"""One stream over several processes: what they make together is what one makes.

Most of it in threads that exchange tensors as processes do, in the same order and at the same places; the
command itself in processes of torchrun.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.context import ChunkPlan
from streamgen import InputError, Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.parallel import ulysses
from streamgen.engine.parallel.mesh import Mesh, joined
from streamgen.engine.parallel.ulysses import TOLERANCE, UlyssesContext, slab_axis
from streamgen.motion.tracks import drag
from tests.command_line import ROOT, call, environment
from tests.streams import BLUE, RED, changed_latents
from tests.thread_mesh import CPU, together
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs, tiny_dit

PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(3, 3, 3, 6))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    torch.set_num_threads(1)
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"plan{i}"), plan, steps=2))
        for i, plan in enumerate(PLANS)
    ]


def steered(session: Session, chunks: int = 8) -> list[Tensor]:
    """Latents of a stream with a drag, a switch, a scene of its own and sliders."""
    changes: dict[int, StreamEvent] = {
        2: StreamEvent(motion=drag((0.2, 0.3), (0.8, 0.7), 40)),
        4: StreamEvent(prompt=BLUE),
        6: StreamEvent(prompt=RED, cache="clear", settings={"text_guidance": 1.5, "context_noise": 0.1}),
    }
    return changed_latents(session, changes, chunks)


def over(parts: Any, size: int, settings: dict[str, Any]) -> list[list[Tensor]]:
    def work(mesh: Mesh) -> list[Tensor]:
        pipeline = Pipeline(parts, mesh=mesh)
        return steered(pipeline.open(RED, settings=settings, decode=False))

    return together(size, work)


@pytest.mark.parametrize("plan", range(len(PLANS)))
@pytest.mark.parametrize("settings", [{}, {"recache_mode": "joint", "rope": "absolute"}])
def test_two_processes_make_what_one_makes(
    plan: int, settings: dict[str, Any], pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines[plan]
    if settings and plan == 0:
        # a sink of one frame and chunks of one: any mode serves
        settings = settings | {"rope": "relative"}
    alone = steered(pipeline.open(RED, settings=settings, runner="plain", decode=False))

    def check() -> None:
        made = over(pipeline.parts, 2, settings)
        # all of them have the whole of it, bit for bit
        assert all(torch.equal(*pair) for pair in zip(*made, strict=True))
        for found, expected in zip(made[0], alone, strict=True):
            assert float((found - expected).abs().max() / expected.std()) < TOLERANCE

    if settings or plan:
        check()
        return
    own = UlyssesContext._own_tokens
    swapped = lambda self, x: own(self, x).flip(1)  # noqa: E731
    assert_needs(check, monkeypatch, UlyssesContext, "_own_tokens", swapped)
    alike = lambda self, x: x.unflatten(3, (2, -1)).select(3, 0).repeat_interleave(2, 2)  # noqa: E731
    assert_needs(check, monkeypatch, UlyssesContext, "_all_tokens", alike)


def test_columns_are_shared_out_where_rows_cannot_be() -> None:
    """And what goes there and back is what it was."""
    config = tiny_dit(heads=4, dim=48).config
    assert slab_axis(config, (4, 6), 2) == 3
    assert slab_axis(config, (3, 4), 2) == 4

    def work(mesh: Mesh) -> bool:
        class Seen:
            def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                assert q.shape == (1, 2 * 3 * 4, 2, 12)
                whole = x[:, :, mesh.rank * 2 : mesh.rank * 2 + 2]
                return v if torch.equal(v, whole) else torch.zeros_like(v)

        x = torch.randn(1, 2 * 3 * 4, 4, 12, generator=torch.Generator().manual_seed(0))
        slab = x.view(1, 2, 3, 2, 2, 4, 12)[:, :, :, mesh.rank].reshape(1, -1, 4, 12)
        context = UlyssesContext(Seen(), mesh, 2, (3, 4), 4)
        return torch.equal(context.attend(0, slab, slab, slab), slab)

    assert together(2, work) == [True, True]


def test_snapshots_go_from_several_processes_to_one_and_back(pipelines: list[Pipeline]) -> None:
    pipeline = pipelines[0]

    def saved(mesh: Mesh) -> Any:
        session = Pipeline(pipeline.parts, mesh=mesh).open(RED, decode=False)
        steered(session, 5)
        snapshot = session.snapshot()
        return snapshot, [next(session).latents for _ in range(2)]

    snapshots = together(2, saved)
    assert snapshots[0][0].meta["processes"] == 2
    one = Session.of(pipeline, snapshots[0][0], pipeline.runner("plain"))
    for expected in snapshots[0][1]:
        assert float((next(one).latents - expected).abs().max() / expected.std()) < TOLERANCE

    def back(mesh: Mesh) -> list[Tensor]:
        own = Pipeline(pipeline.parts, mesh=mesh)
        session = Session.of(own, snapshots[0][0], own.runner())
        return [next(session).latents for _ in range(2)]

    for made in together(2, back):
        assert all(torch.equal(*pair) for pair in zip(made, snapshots[0][1], strict=True))


def test_what_cannot_be_shared_out(pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="3 processes: expected a number that divides the 2 attention heads"):
        Pipeline(pipelines[0].parts, mesh=Mesh(0, 3, CPU))
    wide = tiny_dit(heads=4, dim=48).config
    with pytest.raises(InputError, match=r"4 processes: .* divides the 2 rows or the 3 columns"):
        slab_axis(wide, (2, 3), 4)
    with pytest.raises(InputError, match="runner onnx: not over 2 processes, expected plain"):
        Pipeline(pipelines[0].parts, runner="onnx", mesh=Mesh(0, 2, CPU))
    assert joined() is None
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="--device cuda:1: each process has its own"):
        joined("cuda:1")
    assert ulysses.TOLERANCE <= 1e-4


def test_a_deadline_has_no_place_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamgen.cli import render

    monkeypatch.setattr(render, "joined", lambda device: Mesh(0, 2, CPU))
    done = call(capsys, "render", "sand", "-o", tmp_path / "a.mp4", "--deadline", 50)
    assert "--deadline: not here, clocks of several processes differ" in done.error()


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One video, of the pictures that one process makes; a saved stream goes on; `bench` counts processes."""
    model = write_checkpoint(tmp_path / "model", PLANS[0], steps=2)
    options = ["--model", model, "--seconds", 1, "--at", f"0.5:{BLUE}", "--threads", 1, "-q"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def launched(*arguments: object) -> str:
        command = [*launcher, "-m", "streamgen", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    assert call(capsys, "render", RED, "-o", one, "--runner", "plain", "--png", *options).code == 0
    out = launched("render", RED, "-o", two, "--png", "--save-state", tmp_path / "state", *options)
    assert out.split() == [str(two)]
    records = [json.loads(path.with_suffix(".json").read_text()) for path in (one, two)]
    assert [record["processes"] for record in records] == [1, 2]
    assert [record["runner"] for record in records] == ["plain", "ulysses"]
    # products of half as many rows are rounded otherwise: a level of a colour here and there
    folders = [sorted(path.with_suffix(".frames").iterdir()) for path in (one, two)]
    assert [file.name for file in folders[0]] == [file.name for file in folders[1]]
    for first, second in zip(*folders, strict=True):
        assert np.abs(np.asarray(Image.open(first)).astype(int) - np.asarray(Image.open(second))).max() <= 1
    more = tmp_path / "more.mp4"
    done = call(capsys, "render", "--continue-from", tmp_path / "state", "-o", more, "--model", model)
    assert done.code == 0, done.stderr
    assert "runner ulysses: unknown here; going on with the plain one" in done.stderr
    report = json.loads(launched("bench", "--model", model, "--chunks", 20, "--threads", 1, "--json", "-q"))
    assert (report["processes"], report["runner"]) == (2, "ulysses")
