"""The pictures of README and docs: `python -m distill.pictures -o docs/media [key=value]...`, from the
prompts and seeds of `configs/pictures.yaml`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamgen import load_pipeline
from streamgen.checkpoints.digest import file_sha256
from streamgen.structured import to_plain

from .command import ended, out_folder, say
from .config import CONFIGS, build, read_mapping
from .files import write_json
from .samples import SHEETS, SampleConfig
from .scenes import contact_sheet
from .scenes.gallery import write_gallery

CONFIG = CONFIGS / "pictures.yaml"
RECORD = "pictures.json"


@dataclass(frozen=True)
class PictureConfig(SampleConfig):
    """All that is drawn: of the `model`, a name or a checkpoint directory, and of the `world`, if wanted."""

    model: str
    world: bool


def draw(config: PictureConfig, folder: Path) -> list[Path]:
    """Draw `prompts.png`, `switches.png`, `drags.png` and `world/`, and write to `pictures.json` what they
    were drawn from: weights, config, and the sha256 of each file.

    Returns:
        The pictures, in the order in which they were drawn.

    Raises:
        CheckpointError, InputError: a model that cannot be loaded, or a folder that cannot be written.
    """
    pipeline = load_pipeline(config.model)
    out_folder(str(folder))
    paths = []
    for name in SHEETS:
        if vars(config)[name]:
            paths.append(folder / f"{name}.png")
            contact_sheet(*config.streams(pipeline, name), paths[-1], vars(config.columns)[name])
            say(str(paths[-1]))
    if config.world:
        paths += write_gallery(folder / "world")
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
    record = {"model": pipeline.name, "weights": pipeline.digest, "config": to_plain(config), "files": files}
    write_json(folder / RECORD, record)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m distill.pictures", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the pictures: docs/media")
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="prompts and seeds (configs/pictures.yaml)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as model=DIR world=false")
    options = parser.parse_intermixed_args(None if arguments is None else list(arguments))

    def run() -> int:
        draw(build(PictureConfig, read_mapping(options.config, options.overrides)), options.out)
        return 0

    return ended(run)


if __name__ == "__main__":
    raise SystemExit(main())
