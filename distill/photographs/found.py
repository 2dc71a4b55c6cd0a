"""Photographs that well-kept packages carry in their wheels, so that nothing has to be downloaded."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from streamgen.errors import InputError

#: By module, what its package is called and the pictures that a camera took. None of them is a frame of a
#: video: those stay for measuring.
PHOTOGRAPHS: dict[str, tuple[str, tuple[str, ...]]] = {
    "skimage": (
        "scikit-image",
        (
            "data/astronaut.png",
            "data/brick.png",
            "data/camera.png",
            "data/chelsea.png",
            "data/coffee.png",
            "data/coins.png",
            "data/grass.png",
            "data/gravel.png",
            "data/hubble_deep_field.jpg",
            "data/ihc.png",
            "data/moon.png",
            "data/motorcycle_left.png",
            "data/page.png",
            "data/retina.jpg",
            "data/rocket.jpg",
        ),
    ),
    "sklearn": ("scikit-learn", ("datasets/images/china.jpg", "datasets/images/flower.jpg")),
    "matplotlib": ("matplotlib", ("mpl-data/sample_data/grace_hopper.jpg",)),
    "gradio": (
        "gradio",
        (
            "media_assets/images/cheetah.jpg",
            "media_assets/images/cheetah1.jpg",
            "media_assets/images/lion.jpg",
            "media_assets/images/tower.jpg",
        ),
    ),
}


def photograph_paths() -> list[Path]:
    """The files, in a fixed order.

    Raises:
        InputError: a package is not installed, or carries one of them no longer.
    """
    paths = []
    for module, (package, names) in PHOTOGRAPHS.items():
        # found, not imported: some of these take seconds to import
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise InputError(
                f'photographs: needs {package}, which is not installed: pip install "streamgen[photographs]"'
            )
        paths += [Path(spec.origin).parent / name for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(f"photographs: expected the file {missing[0]}, which this version of it lacks")
    return paths


def read_photographs(paths: Sequence[Path]) -> list[Tensor]:
    """Pictures as uint8 (3, H, W), grey ones with three equal channels; raises InputError for a file that is
    no picture.
    """
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{path}: cannot be read as an image ({error})") from None
        pictures.append(torch.from_numpy(pixels).movedim(-1, 0).contiguous())
    return pictures
