"""Pictures from viewers: limited in size and kind, decoded in a child process with a time limit."""

import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from streamgen.errors import InputError
from streamgen.video.read import read_clip

MAX_BYTES = 32 * 2**20
DECODE_SECONDS = 20.0
MAX_CLIP_SECONDS = 10.0
KINDS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "video/quicktime": ".mov",
    "video/x-matroska": ".mkv",
}
_ROOT = Path(__file__).resolve().parent.parent


async def save(body: AsyncIterator[bytes], kind: str, folder: Path, most: int = MAX_BYTES) -> Path:
    """Write an upload to a new file.

    Raises:
        InputError: a kind that is not taken, nothing in it, or more than `most` bytes.
    """
    kind = kind.split(";", maxsplit=1)[0].strip().lower()
    if kind not in KINDS:
        names = ", ".join(name.partition("/")[2] for name in KINDS)
        raise InputError(f"expected an image or a clip ({names}), found {kind[:60] or 'no type'}")
    size = 0
    with tempfile.NamedTemporaryFile(dir=folder, suffix=KINDS[kind], delete=False) as file:
        async for part in body:
            size += len(part)
            if size > most:
                raise InputError(f"the file is too large: at most {most // 2**20} MB are taken")
            file.write(part)
    if not size:
        raise InputError("the file is empty")
    return Path(file.name)


def decode(file: Path, size: tuple[int, int], fps: float, seconds: float) -> np.ndarray:
    """The pictures of an image or a clip, uint8 `(T, H, W, 3)`, as `streamgen render --image` or `--video`
    reads them.

    Raises:
        InputError: it cannot be read, takes longer than `seconds`, or is a clip of more than ten seconds.
    """
    height, width = size
    if file.suffix in (".mp4", ".webm", ".mov", ".mkv"):
        most = round(MAX_CLIP_SECONDS * fps) + 1
        try:
            clip = read_clip(file, fps, height, width, most + 1, seconds)
        except InputError as error:
            raise InputError(str(error).replace(str(file), "the clip")) from None
        if len(clip) > most:
            raise InputError(f"the clip is too long: at most {MAX_CLIP_SECONDS:g} seconds are taken")
        return np.ascontiguousarray(clip)
    with tempfile.TemporaryDirectory(prefix="streamgen-demo-") as folder:
        out = Path(folder, "picture.npy")
        order = json.dumps({"file": str(file), "height": height, "width": width, "out": str(out)})
        command = [sys.executable, "-m", "demo.image_child", order]
        try:
            done = subprocess.run(
                command, cwd=_ROOT, capture_output=True, timeout=seconds, check=False, text=True
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"decoding the image took longer than {seconds:g} s") from None
        if done.returncode or not out.is_file():
            why = done.stdout.strip().splitlines()
            raise InputError(why[0] if why else "decoding the picture failed")
        picture: np.ndarray = np.load(out)
    return picture[None]
