"""Clips of any length, decoded as they are needed in a child process."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..video import decode_worker
from .read import EndsEarly
from .y4m import PipeBytes

WORKER = Path(decode_worker.__file__)
# longest time (s) that one frame may take, whatever the decoder does
_PATIENCE = 60.0


def clip_frames(
    path: Path, size: tuple[int, int], fps: float, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Tensor]:
    """A clip's frames at a rate, uint8 `(height, width, 3)`, scaled to cover and cropped at the centre.

    Raises:
        InputError: no clip, or none of its frames can be decoded. EndsEarly: it is damaged or cut off
            behind those that were given.
    """
    height, width = size
    request = decode_worker.Request(str(path.resolve()), float(fps), height, width, 0)
    with tempfile.TemporaryDirectory(prefix="streamgen-", ignore_cleanup_errors=True) as folder:
        order = json.dumps({"request": request._asdict(), "backend": "pyav", "folder": folder, "play": True})
        with Path(folder, "log.txt").open("wb") as log:
            child = subprocess.Popen(
                # -P: the package's folder must not become the first place to import from
                [sys.executable, "-P", str(WORKER), order],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C in a terminal goes to the whole group: it is for the caller to say what it ends
                start_new_session=True,
            )
            try:
                yield from _frames(path, child, size, stopped, Path(folder))
            finally:
                child.kill()
                assert child.stdout is not None
                child.stdout.close()
                # one that is stuck in the kernel dies later or never
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(1.0)


def _frames(
    path: Path,
    child: "subprocess.Popen[bytes]",
    size: tuple[int, int],
    stopped: Callable[[], bool],
    folder: Path,
) -> Iterator[Tensor]:
    assert child.stdout is not None
    count, given = size[0] * size[1] * 3, 0
    late = [time.monotonic() + _PATIENCE]

    def gives_up() -> bool:
        if time.monotonic() > late[0]:
            raise _failure(path, f"decoding a frame took longer than {_PATIENCE:g} s", given)
        return stopped()

    pipe = PipeBytes(str(path), child.stdout, gives_up)
    while len(data := pipe.exactly(count)) == count:
        yield torch.frombuffer(bytearray(data), dtype=torch.uint8).view(*size, 3)
        given += 1
        late[0] = time.monotonic() + _PATIENCE
    code = child.wait(_PATIENCE)
    verdict = folder / "error.txt"
    if code == 3 and verdict.exists():
        raise _failure(path, verdict.read_text(encoding="utf-8"), given)
    if code:
        raise _failure(path, f"cannot be decoded (the decoder ended with {code})", given)


def _failure(path: Path, reason: str, given: int) -> Exception:
    """What is wrong: of a clip that has given frames, that it ends early."""
    return EndsEarly(f"{path}: {reason}") if given else InputError(f"{path}: {reason}")
