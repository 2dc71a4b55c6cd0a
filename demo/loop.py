"""`python -m demo.loop`: records what the page shows before anybody has pressed Start.

The shipped model draws a thing, it is dragged along a line, then its words change. The frames go into one
picture, side by side, and what happens at which of them into a JSON file beside it; the page plays them and
draws the line over them, as it does for a live stream.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from streamgen import InputError, Pipeline, StreamEvent, StreamgenError
from streamgen.motion.tracks import path

from .assets import STATIC

FIRST, SECOND = "a medium red circle stays over the snow", "a medium blue star stays over the snow"
SEED = 3
COLUMNS = 10
# Seconds of the stream before the loop begins, until the drag begins, that it takes, and until the words
# change.
_WARM, _REST, _DRAG, _AFTER = 1.55, 0.25, 2.2, 0.6
# Seconds under the new words.
_NEW = 1.1
# The line, from the thing towards the other side of the picture: shares of the way across and down.
_LINE = ((0.0, 0.0, 0.0), (0.35, 0.5, -0.35), (0.7, 0.9, 0.25), (1.0, 1.0, 0.0))


def red_thing(picture: np.ndarray) -> tuple[float, float]:
    """The middle of what is red in a picture, uint8 (H, W, 3), normalised (x, y).

    Raises:
        InputError: nothing is.
    """
    red, green, blue = picture.reshape(-1, 3).astype(int).T
    found = np.flatnonzero((red > 120) & (red > 2 * green) & (red > 2 * blue))
    rows, columns = np.divmod(found, picture.shape[1])
    if len(rows) < 20:
        raise InputError("the model drew nothing red that could be dragged: try another --seed")
    return (float(columns.mean()) + 0.5) / picture.shape[1], (float(rows.mean()) + 0.5) / picture.shape[0]


def record(pipeline: Pipeline, seed: int) -> tuple[np.ndarray, dict[str, object]]:
    """The loop's frames, uint8 (T, H, W, 3), and what happens in them."""
    session = pipeline.open(prompt=FIRST, seed=seed)
    fps = float(pipeline.config.geometry().fps)
    frames: list[np.ndarray] = []

    def play(seconds: float) -> None:
        until = len(frames) + round(seconds * fps)
        while len(frames) < until:
            frames.extend(next(session).frames.cpu().numpy())

    play(_WARM + _REST)
    x, y = red_thing(frames[-1])
    across = (0.25 if x > 0.5 else 0.75) - x
    knots = [(_DRAG * t, x + across * a, min(0.9, max(0.1, y + abs(across) * d))) for t, a, d in _LINE]
    session.submit(StreamEvent(gestures={"drag": path(knots, fps)}))
    dragged = len(frames)
    play(_DRAG + _AFTER)
    session.submit(StreamEvent(prompt=SECOND))
    changed = len(frames)
    play(_NEW)
    begin = round(_WARM * fps)
    about = {
        "fps": fps,
        "frames": len(frames) - begin,
        "columns": COLUMNS,
        "line": [[round(dragged - begin + fps * t, 2), round(px, 4), round(py, 4)] for t, px, py in knots],
        "words": [[0, FIRST], [changed - begin, SECOND]],
        "model": pipeline.name,
    }
    return np.stack(frames[begin:]), about


def write(frames: np.ndarray, about: dict[str, object], out: Path, quality: int) -> None:
    """The frames side by side as one WebP, and what happens in them as JSON beside it."""
    count, height, width = frames.shape[:3]
    rows = -(-count // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, height, width, 3), np.uint8)
    sheet[:count] = frames
    sheet = sheet.reshape(rows, COLUMNS, height, width, 3).swapaxes(1, 2).reshape(rows * height, -1, 3)
    Image.fromarray(sheet).save(out, "WEBP", quality=quality, method=6)
    out.with_suffix(".json").write_text(json.dumps(about | {"width": width, "height": height}) + "\n")


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to: a .webp, and a .json beside it.")] = (
        STATIC / "loop.webp"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the stream.")] = SEED,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the WebP.")] = 20,
    model: Annotated[str, typer.Option(help="What draws it.")] = "tiny",
) -> None:
    """Record the loop that the page shows before a start."""
    from streamgen import load_pipeline

    try:
        frames, about = record(load_pipeline(model), seed)
    except StreamgenError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    write(frames, about, out, quality)
    print(out, out.stat().st_size)


if __name__ == "__main__":
    app()
