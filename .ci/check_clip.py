"""Read a rendered clip back and check what a viewer would notice: size, rate, length, that it moves.

Usage: python .ci/check_clip.py CLIP SECONDS
"""

import sys

import decord
import numpy as np

FPS = 16
MIN_SIDE = 64
# In 8-bit levels. A picture of one colour has a spread near 0, a frozen one a change of 0.
MIN_SPREAD = 4.0
MIN_CHANGE = 0.2


def problems(path: str, seconds: float) -> list[str]:
    """What is wrong with the clip at `path`, one line each; empty when nothing is."""
    reader = decord.VideoReader(path)
    video = reader.get_batch(range(len(reader))).asnumpy().astype(np.float32)
    frames, height, width, _ = video.shape
    spread = video.std(axis=(1, 2, 3))
    change = float(np.abs(video[-1] - video[0]).mean())
    print(
        f"{path}: {frames} frames of {width}x{height} at {reader.get_avg_fps():.3f} fps, "
        f"spread {spread.min():.1f}, change from first to last frame {change:.2f}"
    )
    checks = {
        f"expected {round(seconds * FPS)} frames": frames == round(seconds * FPS),
        f"expected {FPS} fps": abs(reader.get_avg_fps() - FPS) < 0.01,
        f"expected at least {MIN_SIDE}x{MIN_SIDE}": min(height, width) >= MIN_SIDE,
        f"a frame is nearly one colour (spread below {MIN_SPREAD})": spread.min() >= MIN_SPREAD,
        f"nothing moves (change below {MIN_CHANGE})": change >= MIN_CHANGE,
    }
    return [message for message, passed in checks.items() if not passed]


if __name__ == "__main__":
    found = problems(sys.argv[1], float(sys.argv[2]))
    sys.exit("; ".join(found) if found else 0)
