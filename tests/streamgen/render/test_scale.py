"""One folder, many processes: `accelerate launch`, shards of a job array, and tasks on a Ray cluster."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.batch_storm import Worker, check_folder, run_once
from tests.command_line import ROOT, environment
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1)


def write_jobs(tmp_path: Path, count: int, frames: int, **more: Any) -> Path:
    file = tmp_path / "jobs.jsonl"
    rows = [{"prompt": "a red circle", "frames": frames} for _ in range(count)]
    file.write_text("\n".join(map(json.dumps, [*rows, *([more] if more else [])])))
    return file


def launch(jobs: Path, out: Path, model: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Two processes of `accelerate launch` on this machine, started as those of a machine with two GPUs are:
    its launcher for CPUs needs MPI.
    """
    places = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    fixed = ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    render = ["-m", "streamgen", "render", str(jobs), "-o", str(out), "--model", str(model)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *places, *fixed, *render]
    return subprocess.run(
        [*command, "--threads", "1", *map(str, options)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_accelerate_splits_the_jobs_and_changes_nothing(tmp_path: Path, checkpoint: Path) -> None:
    """The last job fails: the launcher must not end the other process for that."""
    jobs = write_jobs(tmp_path, 5, 33, prompt="sea", set={"stepz": 1})
    out, alone = tmp_path / "out", tmp_path / "alone"
    done = launch(jobs, out, checkpoint)
    assert done.returncode != 0
    assert "line 6: 00005-sea-s5: setting unknown key 'stepz'" in done.stderr
    assert run_once(jobs, alone, checkpoint).process.returncode == 1
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows].count("failed") == 1
    assert len({row["worker"] for row in rows}) == 2, "one process did it all"
    assert check_folder_of(out) == check_folder_of(alone)
    assert "[0/2] " in done.stderr
    assert "[1/2] " in done.stderr
    assert (out / "index.html").is_file()


def check_folder_of(out: Path) -> dict[str, str]:
    """Of a run whose last job fails."""
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    good = [row for row in rows if row["status"] == "ok"]
    (out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good))
    return check_folder(out, 5)


@pytest.mark.slow
def test_shards_of_a_job_array(tmp_path: Path, checkpoint: Path) -> None:
    jobs, out = write_jobs(tmp_path, 5, 5), tmp_path / "out"
    workers = [Worker(jobs, out, checkpoint, ["--shard", f"{i}/2"]) for i in range(2)]
    assert [worker.end() for worker in workers] == [0, 0]
    check_folder(out, 5)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    by_worker = {
        row["worker"]: {r["index"] % 2 for r in rows if r["worker"] == row["worker"]} for row in rows
    }
    assert sorted(map(sorted, by_worker.values())) == [[0], [1]]


def ray_run(jobs: Path, out: Path, model: Path) -> Worker:
    # on a busy machine its processes take longer to come up than Ray waits by default
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "240"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    return Worker(jobs, out, model, ["--engine", "ray"])


def written(out: Path) -> int:
    """Bytes of the largest clip that is being made."""
    most = 0
    for path in out.glob("*.mp4.part"):
        # it may be done by now, and have another name
        with contextlib.suppress(FileNotFoundError):
            most = max(most, path.stat().st_size)
    return most


def render_workers(driver: int) -> list[int]:
    """Processes of a driver's Ray cluster that are at a task."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "ray::render_item" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_ray_takes_up_what_a_killed_worker_left(tmp_path: Path, checkpoint: Path) -> None:
    """A worker is killed in mid-item: its item is tried again, and all else is as without Ray."""
    jobs, out, alone = write_jobs(tmp_path, 4, 161), tmp_path / "out", tmp_path / "alone"
    driver = ray_run(jobs, out, checkpoint)
    deadline = time.monotonic() + 200
    killed = 0
    while not killed and time.monotonic() < deadline and driver.process.poll() is None:
        if written(out) > 2000:
            for pid in render_workers(driver.process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    assert driver.end() == 0, driver.errors
    assert killed == 1, "no worker was caught in mid-item"
    run_once(jobs, alone, checkpoint)
    assert check_folder(out, 4) == check_folder(alone, 4)


@pytest.mark.slow
def test_ray_stops_and_goes_on(tmp_path: Path, checkpoint: Path) -> None:
    jobs, out = write_jobs(tmp_path, 2, 161, prompt="sea", set={"stepz": 1}), tmp_path / "out"
    driver = ray_run(jobs, out, checkpoint)
    deadline = time.monotonic() + 200
    while not list(out.glob("*.mp4.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 130, driver.errors
    assert not [path for path in out.glob("*.json") if not path.with_suffix(".mp4").exists()]
    again = ray_run(jobs, out, checkpoint)
    assert again.end() == 1
    statuses = [json.loads(line)["status"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(statuses) == ["failed", "ok", "ok"]


def test_without_ray_the_engine_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.command_line import call

    monkeypatch.setitem(sys.modules, "ray", None)
    jobs = write_jobs(tmp_path, 1, 5)
    done = call(capsys, "render", jobs, "-o", tmp_path / "out", "--model", checkpoint, "--engine", "ray")
    assert "Ray is not installed, expected `pip install" in done.error()
