"""Clips of any length, decoded as they are needed in a child process."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..video import decode_worker
from ..video.decode_child import Decoding, decoding
from .read import EndsEarly
from .y4m import PipeBytes

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
    with decoding(request, {"play": True}, listens=True) as at_work:
        yield from _frames(path, at_work, size, stopped)


def _frames(
    path: Path, at_work: Decoding, size: tuple[int, int], stopped: Callable[[], bool]
) -> Iterator[Tensor]:
    child = at_work.child
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
    verdict = at_work.verdict(code)
    if verdict is not None:
        raise _failure(path, verdict, given)
    if code:
        raise _failure(path, f"cannot be decoded (the decoder ended with {code})", given)


def _failure(path: Path, reason: str, given: int) -> Exception:
    """What is wrong: of a clip that has given frames, that it ends early."""
    return EndsEarly(f"{path}: {reason}") if given else InputError(f"{path}: {reason}")
