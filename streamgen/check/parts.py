"""The parts of a check in their order, the time that each may take, and how one is run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..suggest import unknown_key
from . import agreement, hardware, wan
from .plan import Plan, Row, machine
from .report import Report


@dataclass(frozen=True)
class Part:
    """A piece of a check: what it does, and the seconds that it may take on a GPU, its start counted."""

    work: Callable[[Plan, Row], None]
    seconds: int


# what says most for its time comes first: a call ends after eight minutes, the next one does the rest
PARTS: dict[str, Part] = {
    "ceilings": Part(hardware.ceilings, 40),
    "kernels": Part(hardware.kernels, 40),
    "correctness": Part(agreement.correctness, 90),
    "wan-window-12": Part(wan.window_12, 110),
    "wan-window-21": Part(wan.window_21, 80),
    "runners": Part(agreement.runners, 110),
    "wan-compile": Part(wan.compiled_12, 230),
    "wan-eight-bits": Part(wan.eight_bits_12, 100),
    # with what it has to compile anew; on most machines a part for the second call
    "wan-compile-eight-bits": Part(wan.compiled_eight_bits_12, 400),
}


def run_part(name: str, plan: Plan, file: Path, say: Callable[[str], None] = lambda text: None) -> bool:
    """Run a part unless it is done, and write what it finds; returns whether all is well.

    Raises:
        InputError: an unknown part, or a file of another machine.
    """
    if name not in PARTS:
        raise InputError(unknown_key(name, PARTS, noun="part"))
    report = Report(file, machine(plan))
    if report.done(name):
        say(f"{name}: done before")
        return report.content["parts"][name]["status"] == "done"
    report.begin(name)
    began, reason = time.perf_counter(), None

    def row(title: str, values: object) -> None:
        assert isinstance(values, dict)
        report.row(name, title, values)
        say(f"{name}: {title}")

    try:
        PARTS[name].work(plan, row)
    except Exception as error:  # one part that cannot be is no reason to give up the others
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return report.end(name, time.perf_counter() - began, reason)
