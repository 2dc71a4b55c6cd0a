"""Decodes one image in a process of its own, which `uploads` ends when its time is up."""

import json
import sys

import numpy as np

from streamgen.errors import InputError
from streamgen.video.read import read_image


def main(order: str) -> int:
    """Read the image that `order` (JSON) names and write its pixels; returns the exit code, prints why."""
    wanted = json.loads(order)
    try:
        picture = read_image(wanted["file"], wanted["height"], wanted["width"])
    except InputError as error:
        print(str(error).replace(wanted["file"], "the picture"))
        return 1
    np.save(wanted["out"], picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
