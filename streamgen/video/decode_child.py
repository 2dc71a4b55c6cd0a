"""The child process that decodes clips (`decode_worker`): begun, listened to, and ended whatever it does."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import decode_worker

WORKER = Path(decode_worker.__file__)
_BAD_CLIP = 3


@dataclass(frozen=True)
class Decoding:
    """A child at work.

    Attributes:
        child: its process; what it gives it writes into `folder`, or on its standard output.
        folder: its own, gone once it has ended.
    """

    child: "subprocess.Popen[bytes]"
    folder: Path

    def verdict(self, code: int) -> str | None:
        """What it has found wrong with the clip, in one line, where it ended with `code` for that."""
        told = self.folder / "error.txt"
        return told.read_text(encoding="utf-8") if code == _BAD_CLIP and told.exists() else None

    def last_words(self) -> str:
        """The last line that it wrote on standard error."""
        text = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        return (text.strip().splitlines() or [""])[-1][:200]


@contextlib.contextmanager
def decoding(
    request: decode_worker.Request, what: Mapping[str, Any], listens: bool = False
) -> Iterator[Decoding]:
    """A child that decodes, until this is left.

    Args:
        what: to do with the frames, and by what; see `decode_worker`.
        listens: whether its standard output is read.
    """
    with tempfile.TemporaryDirectory(prefix="streamgen-", ignore_cleanup_errors=True) as folder:
        order = json.dumps({"request": request._asdict(), "backend": "pyav", "folder": folder} | dict(what))
        with Path(folder, "log.txt").open("wb") as log:
            child = subprocess.Popen(
                # -P: the package's folder must not become the first place to import from
                [sys.executable, "-P", str(WORKER), order],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if listens else subprocess.DEVNULL,
                stderr=log,
                # Ctrl-C in a terminal goes to the whole group: it is for the caller to say what it ends
                start_new_session=True,
            )
            try:
                yield Decoding(child, Path(folder))
            finally:
                _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.kill()
    if child.stdout is not None:
        child.stdout.close()
    # one that is stuck in the kernel dies later or never; nobody waits for that
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(1.0)
