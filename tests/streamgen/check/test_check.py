"""The check of a machine: all of it runs here at reduced size, stops and goes on, and finds what is wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import models.attention
from streamgen.check import parts
from streamgen.check.parts import PARTS, Part, run_part
from streamgen.check.plan import Plan, Row, machine
from streamgen.check.report import Report
from streamgen.errors import InputError
from tests.tiny_models import assert_needs

ROOT = Path(__file__).resolve().parents[3]
PLAN = Plan(torch.device("cpu"), small=True)
BUDGET_SECONDS = 480


def rows(file: Path, part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["parts"][part]
    return found


@pytest.mark.slow
def test_every_part_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes minutes: a compiler is given the very functions, and gives them back."""

    def as_it_is(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return function

    monkeypatch.setattr(torch, "compile", as_it_is)
    file = tmp_path / "results" / "check.json"
    for name in PARTS:
        assert run_part(name, PLAN, file), rows(file, name)
        assert rows(file, name)["rows"]
    for row in rows(file, "wan-window-12")["rows"].values():
        assert min(row["fps"], row["recache_ms"], row["switch_ms"], row["first_frame_ms"]) > 0
        assert row["memory_mb"] > 0
    assert {"onnx", "compile"} <= set(rows(file, "runners")["rows"])
    table = Report(file).table()
    assert all(f"{name} (done" in table for name in PARTS)
    assert "TAEHV" in table
    assert "report" not in table


def test_the_parts_fit_into_the_time() -> None:
    """One call has room for all but the last at six tenths of their limits, and for that one by itself."""
    seconds = [part.seconds for part in PARTS.values()]
    assert 0.6 * sum(seconds[:-1]) <= BUDGET_SECONDS
    assert max(seconds) < BUDGET_SECONDS


def test_it_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is not done again, what was cut short is, and keeps what it had come to."""
    file, calls = tmp_path / "check.json", list[str]()

    def quick(plan: Plan, row: Row) -> None:
        calls.append("quick")
        row("a", {"value": 1, "deep": {"more": 2}})

    def stopped(plan: Plan, row: Row) -> None:
        calls.append("stopped")
        row("half", {"value": 2})
        if calls.count("stopped") == 1:
            raise KeyboardInterrupt

    def wrong(plan: Plan, row: Row) -> None:
        row("off", {"ok": False})
        row("fine", {"ok": True})

    def broken(plan: Plan, row: Row) -> None:
        raise RuntimeError("no kernel\nfor this")

    works = {"quick": quick, "stopped": stopped, "wrong": wrong, "broken": broken}
    monkeypatch.setattr(parts, "PARTS", {name: Part(work, 1) for name, work in works.items()})
    assert run_part("quick", PLAN, file)
    with pytest.raises(KeyboardInterrupt):
        run_part("stopped", PLAN, file)
    assert rows(file, "stopped") == {"status": "cut short", "rows": {"half": {"value": 2}}}
    assert run_part("quick", PLAN, file)
    assert run_part("stopped", PLAN, file)
    assert calls == ["quick", "stopped", "stopped"]
    assert not run_part("wrong", PLAN, file)
    assert not run_part("broken", PLAN, file)
    assert not run_part("wrong", PLAN, file)
    assert rows(file, "wrong")["reason"] == "not as it has to be: off"
    assert rows(file, "broken")["reason"] == "RuntimeError: no kernel for this"
    table = Report(file).table()
    assert "value 1" in table
    assert "more" not in table
    with pytest.raises(InputError, match="unknown part 'quik'"):
        run_part("quik", PLAN, file)
    with pytest.raises(InputError, match="another machine"):
        Report(file, machine(PLAN) | {"torch": "other"})
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"expected results of"):
        Report(tmp_path / "other.json")


def test_another_attention_kernel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = iter(range(9))

    def check() -> None:
        file = tmp_path / f"{next(number)}.json"
        assert run_part("kernels", PLAN, file), rows(file, "kernels")

    assert_needs(check, monkeypatch, models.attention, "chosen_backend", lambda *_: "explicit")


@pytest.mark.slow
def test_the_script_goes_through_parts(tmp_path: Path) -> None:
    """As on a fresh machine, at reduced size; a second call finds all done."""
    file = tmp_path / "check.json"
    known = {"PYTHON": sys.executable, "CHECK_OPTIONS": "--small --device cpu"}
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), str(file), "ceilings"]
    for told in ("ceilings: bfloat16", "ceilings: done before"):
        done = subprocess.run(
            command, env={**os.environ, **known}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert told in done.stderr
        assert "gemm_tflops" in done.stdout
    hurried = {**os.environ, **known, "CHECK_SECONDS": "1"}
    late = subprocess.run(command[:-1], env=hurried, capture_output=True, text=True, check=False)
    assert late.returncode == 1
    assert "no time left for kernels" in late.stderr
