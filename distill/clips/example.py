"""A folder of clips to try training on: `python -m distill.clips.example -o clips/`.

The clips are of the procedural world, but in the form in which people have theirs: MP4 files with captions
in `metadata.jsonl`, or in a text file beside each.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from streamgen.errors import InputError
from streamgen.motion.arrays import save_tracks
from streamgen.motion.tracks import OCCLUDED, UNSPECIFIED, VISIBLE, TrackSet
from streamgen.video.write import VideoFileSink, reason_of

from ..command import ended, say
from ..scenes import SceneBatch, SceneConfig, SceneGenerator
from .listing import METADATA

_FPS = 16


def make_example(
    folder: Path, clips: int = 30, seconds: float = 6.0, seed: int = 0, text: bool = False
) -> None:
    """Write `clips` clips of `seconds` with captions, and with tracks unless captions are `text` files
    (`clip-00000.txt`) instead of `metadata.jsonl`.

    Raises:
        InputError: the folder has captions of its own, or cannot be written; a number that is not above 0.
    """
    if clips < 1 or seconds <= 0:
        raise InputError(f"clips, seconds: expected above 0, found {clips} and {seconds:g}")
    if any((folder / name).exists() for name in METADATA):
        raise InputError(f"{folder}: has captions already, expected a new folder")
    generator = SceneGenerator(SceneConfig(change_probability=0.0, camera_probability=0.0))
    rows = []
    try:
        (folder / "tracks").mkdir(parents=True, exist_ok=True)
        for index in range(clips):
            scene = generator.sample(1, max(1, round(seconds * _FPS)), seed * 1_000_003 + index)
            name, caption = f"clip-{index:05d}", scene.captions[0][0]
            video = scene.video[0].numpy()
            height, width = video.shape[1:3]
            with VideoFileSink(folder / f"{name}.mp4", height, width, _FPS) as sink:
                sink.write(video)
            if text:
                (folder / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
                continue
            save_tracks(_tracks(scene), folder / "tracks" / f"{name}.npz")
            rows.append({"video": f"{name}.mp4", "caption": caption, "tracks": f"tracks/{name}.npz"})
        if rows:
            content = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / METADATA[0]).write_text(content, encoding="utf-8")
        else:
            (folder / "tracks").rmdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({reason_of(error)})") from None


def _tracks(scene: SceneBatch) -> TrackSet:
    points = scene.points[0]
    inside = ((points >= 0) & (points <= 1)).all(-1)
    state = torch.where(scene.visible[0], VISIBLE, OCCLUDED).masked_fill(~inside, UNSPECIFIED)
    return TrackSet.from_points(points, state, scene.pinned[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m distill.clips.example", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", action="store_true", help="captions in .txt files, no tracks")
    options = parser.parse_args(arguments)

    def run() -> int:
        make_example(options.output, options.clips, options.seconds, options.seed, options.text)
        say(f"{options.clips} clips in {options.output}")
        return 0

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
