"""Batches that are killed, stopped, starved and crowded, in processes of their own.

The long form, thirty kills over forty items of two processes, is under -m soak.
"""

import datetime
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import decord
import pytest
import torch

import streamgen.render.manifest
from streamgen.render.folder import OutputFolder
from streamgen.render.items import items_of
from streamgen.render.job_file import parse_jobs
from tests.batch_storm import Worker, check_folder, interrupt, run_once, storm
from tests.command_line import ROOT, environment
from tests.forked import call_forked
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small")


def write_jobs(tmp_path: Path, count: int, frames: int) -> Path:
    """Prompts with a switch each."""
    file = tmp_path / "jobs.jsonl"
    shots = [{"at": 0.1, "prompt": "sand"}]
    rows = [{"prompt": f"a red circle {i}", "frames": frames, "shots": shots} for i in range(count)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def storms_end_well(tmp_path: Path, checkpoint: Path, count: int, frames: int, kills: int) -> None:
    jobs = write_jobs(tmp_path, count, frames)
    hits = storm(jobs, tmp_path / "storm", checkpoint, processes=2, kills=kills, seed=1)
    assert hits > 0, "every kill came too late"
    calm = run_once(jobs, tmp_path / "calm", checkpoint)
    assert calm.process.returncode == 0
    assert check_folder(tmp_path / "storm", count) == check_folder(tmp_path / "calm", count)


@pytest.mark.slow
def test_kill_nine_at_random_moments(tmp_path: Path, checkpoint: Path) -> None:
    storms_end_well(tmp_path, checkpoint, count=6, frames=49, kills=3)


@pytest.mark.soak
def test_thirty_kills_over_forty_items(tmp_path: Path, checkpoint: Path) -> None:
    count, kills = int(os.environ.get("SOAK_ITEMS", "40")), int(os.environ.get("SOAK_KILLS", "30"))
    storms_end_well(tmp_path, checkpoint, count=count, frames=97, kills=kills)


@pytest.mark.slow
def test_signals_end_after_the_chunk_and_the_run_goes_on_later(tmp_path: Path, checkpoint: Path) -> None:
    jobs, out = write_jobs(tmp_path, 2, 160), tmp_path / "out"
    for number in (signal.SIGINT, signal.SIGTERM):
        worker = Worker(jobs, out, checkpoint)
        assert interrupt(worker, number) == 130
        assert worker.errors.startswith("interrupted")
        assert len(worker.errors.splitlines()) == 1
        assert not list(out.glob("*.mp4"))
        (part,) = out.glob("*.part")
        assert len(decord.VideoReader(str(part))) > 0, "the file was not closed"
    assert run_once(jobs, out, checkpoint).process.returncode == 0
    check_folder(out, 2)
    assert not list(out.glob("*.part"))


@pytest.mark.slow
def test_two_runs_on_one_folder(tmp_path: Path, checkpoint: Path) -> None:
    """Also with other job files that share items under other names."""
    jobs, out = write_jobs(tmp_path, 6, 49), tmp_path / "out"
    first = Worker(jobs, out, checkpoint)
    first.wait_until_rendering()
    # however slowly the second one starts, the first still has its item when it does
    first.process.send_signal(signal.SIGSTOP)
    second = Worker(jobs, out, checkpoint)
    second.wait_until_rendering()
    first.process.send_signal(signal.SIGCONT)
    assert [worker.end() for worker in (first, second)] == [0, 0]
    check_folder(out, 6)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert len({row["worker"] for row in rows}) == 2, "one of them did nothing"


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path, checkpoint: Path) -> None:
    jobs, out = write_jobs(tmp_path, 2, 17), tmp_path / "out"
    arguments = ["render", jobs, "-o", out, "--model", checkpoint, "--threads", 1, "-q"]
    for largest in (600, 6000):
        full = call_forked(*arguments, cwd=tmp_path, largest_file=largest)
        assert full.code == 1, full
        assert len(full.stderr.splitlines()) == 1
        assert full.stderr.startswith("error: ")
        assert "cannot be written (file too large)" in full.stderr
        assert not [path for path in out.glob("*.json") if not path.with_suffix(".mp4").exists()]
    done = call_forked(*arguments, cwd=tmp_path)
    assert done.code == 0, done
    check_folder(out, 2)


@pytest.mark.slow
def test_a_read_only_folder_is_one_clear_line(tmp_path: Path, checkpoint: Path) -> None:
    jobs, out = write_jobs(tmp_path, 1, 5), tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    done = call_forked("render", jobs, "-o", out, "-q", "--model", checkpoint, cwd=tmp_path)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == f"error: -o {out}: cannot be made (permission denied)\n"
    assert not list(out.iterdir())


HOLDER = """
    import sys, time
    from pathlib import Path
    from streamgen.render.folder import OutputFolder
    from streamgen.render.items import items_of
    from streamgen.render.job_file import parse_jobs
    (item,) = items_of(parse_jobs(sys.argv[1]))
    with OutputFolder(Path(sys.argv[2])).claim(item, "key") as mine:
        print(mine, flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_claims_die_with_their_process_and_know_no_clock(tmp_path: Path) -> None:
    jobs, out = write_jobs(tmp_path, 1, 5), tmp_path / "out"
    (item,) = items_of(parse_jobs(jobs))
    folder = OutputFolder(out)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(jobs), str(out)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        for jump in (0, 2**31 - 1, time.time() + 10 * 365 * 86400):
            for lock in (out / ".streamgen" / "locks").iterdir():
                os.utime(lock, (jump, jump))
            with folder.claim(item, "key") as mine:
                assert not mine
            with folder.claim(item, "another key") as mine:
                assert not mine, "the name is claimed, too"
        holder.kill()
        holder.wait()
        with folder.claim(item, "key") as mine:
            assert mine


def jump(seconds: float) -> None:
    """Turn this process's clock forward, or back."""
    plain = time.time
    time.time = lambda: plain() + seconds

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(plain() + seconds, tz)

    streamgen.render.manifest.datetime = Shifted  # type: ignore[misc]


@pytest.mark.slow
def test_clock_jumps_change_nothing(tmp_path: Path, checkpoint: Path) -> None:
    """The clock of each process is off by years, and goes backwards from one to the next."""
    jobs, out = write_jobs(tmp_path, 3, 5), tmp_path / "out"
    for limit, offset in ((1, 3e8), (2, -3e8), (3, 0.0)):
        arguments = ["render", jobs, "-o", out, "--model", checkpoint, "--threads", 1, "-q", "--limit", limit]
        done = call_forked(*arguments, cwd=ROOT, before=lambda offset=offset: jump(offset))
        assert done.code == 0, done
        for path in out.rglob("*.lock"):
            os.utime(path, (0, 0))
    check_folder(out, 3)
    years = [json.loads(line)["at"][:4] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert years != sorted(years)
