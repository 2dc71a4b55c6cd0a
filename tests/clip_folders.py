"""Folders of small clips, and a reader that needs no decoder, for the tests of own clips."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import distill.clips.folder
from distill.clips.config import ClipFolderConfig
from distill.clips.folder import ClipFolder
from streamgen.errors import InputError
from streamgen.video.write import VideoFileSink

FRAMES = 20


def write_clip(path: Path, seed: int = 0, frames: int = FRAMES, height: int = 32, width: int = 48) -> Path:
    """A bright square that moves to the right over a texture, both of `seed`."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(60, 120, (height // 4, width // 4, 3), np.uint8)
    video = np.repeat(np.repeat(texture, 4, 0), 4, 1)[None].repeat(frames, 0)
    top, colour = int(generator.integers(height - 10)), generator.integers(150, 255, 3)
    for index, picture in enumerate(video):
        left = (index + seed) % (width - 10)
        picture[top : top + 10, left : left + 10] = colour
    with VideoFileSink(path, height, width, 16) as sink:
        sink.write(video)
    return path


def metadata(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def quarantined(folder: ClipFolder) -> dict[str, str]:
    """What is on the quarantine list by file name, and why; every row once."""
    rows = [json.loads(line) for line in folder.quarantine.read_text(encoding="utf-8").splitlines()]
    found = {Path(row["what"]).name: row["why"] for row in rows}
    assert len(found) == len(rows)
    return found


class FakeReader:
    """Stands in for `read_clip`: pictures are a function of a file's content; notes what was read.

    A file that begins with "broken" is refused, and `before(name)` is called first.
    """

    def __init__(self, before: Callable[[str], None] | None = None) -> None:
        self.names: list[str] = []
        self.before = before

    def __call__(
        self, path: Path, fps: float, height: int, width: int, max_frames: int, timeout: float
    ) -> np.ndarray:
        if self.before is not None:
            self.before(path.name)
        self.names.append(path.name)
        content = path.read_bytes()
        if content.startswith(b"broken"):
            raise InputError(f"{path}: not a video")
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        return np.random.default_rng(seed).integers(0, 256, (FRAMES, height, width, 3), np.uint8)


def with_reader(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None] | None = None) -> FakeReader:
    """Put a `FakeReader` in place."""
    reader = FakeReader(before)
    monkeypatch.setattr(distill.clips.folder, "read_clip", reader)
    return reader


def small(folder: Path, cache: Path, **changes: object) -> ClipFolderConfig:
    """Pieces of 17 frames of 32 x 48 pixels."""
    values: dict[str, object] = {"height": 32, "width": 48, "frames": 17, "images": 2, "points": 4}
    return ClipFolderConfig(path=str(folder), directory=str(cache), **(values | changes))  # type: ignore[arg-type]
