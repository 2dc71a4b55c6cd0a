"""Several training processes in a test: forked, so that nothing is imported again."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

from accelerate.state import AcceleratorState, PartialState

from tests.ports import free_port

# Seconds for the work of a process; a loaded machine may give it little.
PATIENCE = 240.0


def forget_processes() -> None:
    """Let accelerate take the present environment anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def run_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Run `function(*arguments)` in `count` processes that join a gloo group; returns what each failed with.

    Errors are in order of rank, empty where there was none.
    """
    port = free_port()
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_run, args=(rank, count, port, pipes[rank][1], function, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    try:
        return [_received(receiver) for receiver, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(receiver: Any) -> str:
    try:
        return str(receiver.recv()) if receiver.poll(timeout=PATIENCE) else "no answer"
    except EOFError:
        return "the process died"


def _run(
    rank: int, count: int, port: int, sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    forget_processes()
    try:
        function(*arguments)
        error = ""
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
        traceback.print_exc()
    sender.send(error)
    sender.close()
    # without the interpreter's shutdown: it would wait for a process group that the other may have left
    os._exit(0)
