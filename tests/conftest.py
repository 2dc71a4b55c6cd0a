"""How a run of the tests is laid out: tiers by marker, two workers of one thread each, timed tests alone.

Markers are described in pyproject.toml, what goes into which tier in CONTRIBUTING.md.
"""

import contextlib
import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

# Workers share the cores: a thread each, told before anything imports torch. A single process may be given
# more.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
os.environ["OMP_NUM_THREADS"] = "1" if WORKER else os.environ.get("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# what auto takes is another on another machine; tests of a runner name it
os.environ.setdefault("STREAMGEN_RUNNER", "plain")

WORKERS = 2
# Left out unless -m speaks of them.
ASKED_FOR = ("slow", "soak")
# These have the machine, or the device, to themselves.
UNDIVIDED = ("soak", "gpu")

left_out = pytest.StashKey[dict[str, int]]()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Two workers unless -n says otherwise; not in `addopts`, which `-p no:xdist` would trip over."""
    # workers come through here, too: they must not start workers of their own
    if WORKER or not config.pluginmanager.hasplugin("xdist"):
        return
    options = config.option
    undivided = any(re.search(rf"(?<!not )\b{name}\b", options.markexpr) for name in UNDIVIDED)
    alone = options.usepdb or options.capture == "no" or undivided
    if options.numprocesses is None and options.dist == "no" and not options.tx and not alone:
        options.numprocesses = WORKERS
    if options.numprocesses and options.dist == "no":
        # neighbours stay together, so that fixtures of a module are seldom made twice, and nobody idles
        options.dist = "worksteal"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m slow`, most files have nothing to run: those that do not have the word are not imported."""
    if config.option.markexpr not in ASKED_FOR or collection_path.suffix != ".py":
        return None
    if collection_path in {Path(argument.split("::")[0]).resolve() for argument in config.args}:
        return None
    text = collection_path.read_text(encoding="utf-8")
    return None if any(name in text for name in ASKED_FOR) else True


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What is imported and collected stays to the end: no garbage is looked for in it, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what was not asked for; skip `gpu` tests where there is no CUDA device; timed tests first."""
    counts = config.stash.setdefault(left_out, {})
    for name in ASKED_FOR:
        if name not in config.option.markexpr:
            unwanted = [item for item in items if item.get_closest_marker(name)]
            config.hook.pytest_deselected(items=unwanted)
            items[:] = [item for item in items if not item.get_closest_marker(name)]
            counts[name] = len(unwanted)

    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not _cuda_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

    # together, so that the other workers are stopped for them once
    items.sort(key=lambda item: item.get_closest_marker("timed") is None)


def _cuda_available() -> bool:
    import torch  # only here: collecting tests of plain Python needs no torch

    return torch.cuda.is_available()


class Turns:
    """Who may run: plain tests of several workers at once, a timed one while no other test does.

    Every worker has a lock, which its tests hold; a timed test holds those of all workers.
    """

    def __init__(self, folder: Path, worker: int, workers: int) -> None:
        self._gate = FileLock(folder / "turns-gate.lock", poll_interval=0.01)
        self._locks = [FileLock(folder / f"turns-{i}.lock", poll_interval=0.01) for i in range(workers)]
        # one that takes the place of a worker that died has a number beyond
        self._own = self._locks[worker % workers]

    @contextlib.contextmanager
    def taken(self, alone: bool) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            # nobody begins while a timed test waits for the others to end
            with self._gate:
                for lock in self._locks if alone else [self._own]:
                    held.enter_context(lock)
            yield


def shared_folder(config: pytest.Config, basetemp: Path) -> Path:
    """The folder that all workers of a run have in common; `basetemp` is this process's own."""
    return basetemp.parent if "workerinput" in vars(config) else basetemp


_turns = pytest.StashKey[Turns]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold a turn from a test's set-up to the end of its tear-down."""
    config = item.config
    worker = vars(config).get("workerinput")
    if worker is None:
        return (yield)
    if _turns not in config.stash:
        folder = shared_folder(config, Path(config.option.basetemp))
        number = int(worker["workerid"].removeprefix("gw"))
        config.stash[_turns] = Turns(folder, number, int(worker["workercount"]))
    with config.stash[_turns].taken(alone=item.get_closest_marker("timed") is not None):
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the controlling process what was left out."""
    output = vars(session.config).get("workeroutput")
    if output is not None:
        output["left_out"] = session.config.stash.get(left_out, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: pytest.Item) -> None:
    """Every worker collects everything, so one's counts are all there is to know."""
    counts = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash.setdefault(left_out, {}).update(counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line on what did not run and how to run it: nothing is left out in silence."""
    counts = {name: count for name, count in config.stash.get(left_out, {}).items() if count}
    if counts:
        told = ", ".join(f"{count} {name} (pytest -m {name})" for name, count in counts.items())
        terminalreporter.write_line(f"left out: {told}")
