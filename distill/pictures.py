"""The pictures of README and docs: `python -m distill.pictures -o docs/media [key=value]...`, from the
prompts and seeds of `configs/pictures.yaml`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamgen import Pipeline, StreamEvent, load_pipeline
from streamgen.errors import InputError, StreamgenError
from streamgen.structured import to_plain

from .config import build, read_mapping, require
from .samples import dragged, larger, marked, stream
from .scenes import contact_sheet
from .scenes.gallery import write_gallery

CONFIG = Path(__file__).parents[1] / "configs" / "pictures.yaml"
RECORD = "pictures.json"


@dataclass(frozen=True)
class Shown:
    """A stream of a prompt."""

    seed: int
    prompt: str


@dataclass(frozen=True)
class Switched:
    """A stream of a prompt and, in its middle, another one."""

    seed: int
    prompt: str
    then: str


@dataclass(frozen=True)
class Dragged:
    """A stream whose object is taken where it is and drawn to a place, normalised (x, y)."""

    seed: int
    prompt: str
    to: tuple[float, float]

    def __post_init__(self) -> None:
        require(all(0 <= place <= 1 for place in self.to), "drags.to", "x and y in [0, 1]", self.to)


@dataclass(frozen=True)
class Columns:
    """Pictures of each stream on a sheet."""

    prompts: int
    switches: int
    drags: int

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            require(1 <= count <= 100, f"columns.{name}", "1 to 100", count)


@dataclass(frozen=True)
class PictureConfig:
    """All that is drawn.

    Attributes:
        model: a name or a checkpoint directory.
        zoom: how many times larger pictures are than frames.
        seconds: of a stream, and of each part of one that is switched.
        world: whether the world's own sheets are drawn, too.
        columns: pictures of each stream.
        prompts, switches, drags: the streams, each with its seed; a sheet without any is not drawn.
    """

    model: str
    zoom: int
    seconds: float
    world: bool
    columns: Columns
    prompts: tuple[Shown, ...]
    switches: tuple[Switched, ...]
    drags: tuple[Dragged, ...]

    def __post_init__(self) -> None:
        require(1 <= self.zoom <= 16, "zoom", "1 to 16", self.zoom)
        require(0.1 <= self.seconds <= 60, "seconds", "0.1 to 60", self.seconds)
        for seed in self.seeds:
            require(0 <= seed < 2**62, "seed", ">= 0", seed)

    @property
    def seeds(self) -> list[int]:
        """Those of all streams, in their order."""
        return [row.seed for rows in (self.prompts, self.switches, self.drags) for row in rows]


def draw(config: PictureConfig, folder: Path) -> list[Path]:
    """Draw `prompts.png`, `switches.png`, `drags.png` and `world/`, and write to `pictures.json` what they
    were drawn from: weights, config, and the sha256 of each file.

    Returns:
        The pictures, in the order in which they were drawn.

    Raises:
        CheckpointError, InputError: a model that cannot be loaded, or a folder that cannot be written.
    """
    pipeline = load_pipeline(config.model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made ({error.strerror})") from None
    sheets = {"prompts": _prompts, "switches": _switches, "drags": _drags}
    paths = []
    for name, sheet in sheets.items():
        if vars(config)[name]:
            paths.append(folder / f"{name}.png")
            sheet(pipeline, config, paths[-1])
            sys.stderr.write(f"{paths[-1]}\n")
    if config.world:
        paths += write_gallery(folder / "world")
    files = {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}
    record = {"model": pipeline.name, "weights": pipeline.digest, "config": to_plain(config), "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return paths


def _frames(pipeline: Pipeline, config: PictureConfig) -> int:
    return max(2, round(config.seconds * pipeline.geometry.fps))


def _prompts(pipeline: Pipeline, config: PictureConfig, path: Path) -> None:
    frames = _frames(pipeline, config)
    videos = [stream(pipeline, row.prompt, row.seed, frames) for row in config.prompts]
    captions = [row.prompt for row in config.prompts]
    contact_sheet(larger(videos, config.zoom), captions, path, config.columns.prompts)


def _switches(pipeline: Pipeline, config: PictureConfig, path: Path) -> None:
    frames = _frames(pipeline, config)
    videos = [
        stream(pipeline, row.prompt, row.seed, 2 * frames, (frames, StreamEvent(prompt=row.then)))
        for row in config.switches
    ]
    captions = [f"{row.prompt}  ->  {row.then}" for row in config.switches]
    contact_sheet(larger(videos, config.zoom), captions, path, config.columns.switches)


def _drags(pipeline: Pipeline, config: PictureConfig, path: Path) -> None:
    frames = _frames(pipeline, config)
    drawn = [dragged(pipeline, row.prompt, row.seed, row.to, frames) for row in config.drags]
    videos = [marked(video, track) for video, track in drawn]
    captions = [f"{row.prompt}; dragged to {row.to}" for row in config.drags]
    contact_sheet(larger(videos, config.zoom), captions, path, config.columns.drags)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m distill.pictures", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the pictures: docs/media")
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="prompts and seeds (configs/pictures.yaml)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as model=DIR world=false")
    options = parser.parse_intermixed_args(None if arguments is None else list(arguments))
    try:
        draw(build(PictureConfig, read_mapping(options.config, options.overrides)), options.out)
    except StreamgenError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
