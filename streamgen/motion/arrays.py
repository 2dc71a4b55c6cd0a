"""Tracks from NumPy files: our own layout, and those of other trackers and models.

    layout     shape                     coordinates                       visibility             frames/s
    tracks     (N, T, 2)                 normalised                        visible (N, T)         the stream's
    wan-move   (1, T, N, 2), (T, N, 2)   pixels, whole at pixel centres    (1, T, N), (T, N)      16
    ati        (N, T, 1, 3)              pixels x 8, from the edge         third column x 8       24

The second is what Wan-Move (github.com/ali-vilab/Wan-Move) reads and CoTracker writes, the third is that of
ATI (arXiv 2505.22944), whose .pth file is an .npz in a pickle. An .npz of ours has `points` and may have
`visible`, `pinned` (N,) and `ids` (N,); those of others may name their `size` (width, height) and `fps`.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..suggest import unknown_key
from .tracks import MAX_POINTS, OCCLUDED, UNSPECIFIED, VISIBLE, TrackSet

Layout = Literal["tracks", "wan-move", "ati"]
SUFFIXES = (".npy", ".npz", ".pth")

_FPS: dict[Layout, float | None] = {"tracks": None, "wan-move": 16.0, "ati": 24.0}
_ATI_SCALE = 8
_ALIASES = {
    "points": ("points", "tracks", "array"),
    "visible": ("visible", "visibility", "visibles"),
    "pinned": ("pinned",),
    "ids": ("ids",),
    "size": ("size",),
    "fps": ("fps",),
}


@dataclass(frozen=True)
class ArrayOptions:
    """What a file does not say of itself.

    Attributes:
        visible: a file with the visibility.
        layout: None: by the shape.
        size: (width, height) of the pictures that pixel coordinates are of.
        fps: frames per second of the tracks.
    """

    visible: Path | None = None
    layout: Layout | None = None
    size: tuple[float, float] | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in get_args(Layout):
            raise InputError(
                f"layout: expected one of {', '.join(get_args(Layout))}, found {str(self.layout)[:60]!r}"
            )


def tracks_from_arrays(file: Path, stream_fps: float, options: ArrayOptions | None = None) -> TrackSet:
    """Tracks of a NumPy file at the frame rate of the stream.

    Raises:
        InputError: no NumPy file, another layout, pixel coordinates without a size, or too many points.
    """
    options = options or ArrayOptions()
    arrays = _read(file)
    if options.visible is not None:
        arrays["visible"] = _read(options.visible).popitem()[1]
    if "points" not in arrays:
        raise InputError("points: missing")
    layout = options.layout or _layout_of(arrays["points"])
    points, visible = _in_order(arrays, layout)
    count, frames = points.shape[:2]
    if count == 0 or frames == 0:
        raise InputError("empty: no tracks")
    if count * frames > MAX_POINTS:
        raise InputError(f"too large: {count} tracks of {frames} frames (at most {MAX_POINTS} points)")
    points = points.astype(np.float32)
    corner = (points == 0).all(axis=-1)
    if layout != "tracks":
        points = _normalised(points, layout, options.size or _pair(arrays.get("size")))
    inside = ((points >= 0) & (points <= 1)).all(axis=-1)
    # Trackers report hidden points where they think they are, out of the frame too: those are unspecified.
    state = np.where(visible, VISIBLE, np.where(inside, OCCLUDED, UNSPECIFIED)).astype(np.int8)
    if layout != "tracks":
        # Short tracks are filled up with hidden points in the corner.
        filler = ~visible & corner
        state = np.where(inside & ~filler, state, UNSPECIFIED).astype(np.int8)
    tracks = TrackSet(
        torch.from_numpy(points),
        torch.from_numpy(state),
        torch.from_numpy(_shaped(arrays.get("pinned", np.zeros(count, bool)), (count,), "pinned")),
        torch.from_numpy(np.array(arrays.get("ids", np.arange(count)))),
    )
    fps = options.fps or _single(arrays.get("fps")) or _FPS[layout]
    return tracks if fps is None else resampled(tracks, fps, stream_fps)


def resampled(tracks: TrackSet, from_fps: float, to_fps: float) -> TrackSet:
    """Tracks at another frame rate: points move straight between frames in which they are specified, and are
    what they were at the last frame before.

    Raises:
        InputError: a rate that is not above 0, or a result of too many points.
    """
    if not (0 < from_fps <= 1000 and 0 < to_fps <= 1000):
        raise InputError(f"fps: expected above 0 and at most 1000, found {from_fps:g}")
    if from_fps == to_fps or tracks.num_frames == 0:
        return tracks
    frames = int((tracks.num_frames - 1) * to_fps / from_fps) + 1
    if frames * tracks.num_tracks > MAX_POINTS:
        raise InputError(f"too large: {tracks.num_tracks} tracks of {frames} frames")
    place = torch.arange(frames, dtype=torch.float64) * (from_fps / to_fps)
    first = place.floor().long().clamp(max=tracks.num_frames - 1)
    second = (first + 1).clamp(max=tracks.num_frames - 1)
    share = (place - first)[None, :, None].float()
    known = (tracks.state[:, first] != UNSPECIFIED) & (tracks.state[:, second] != UNSPECIFIED)
    between = torch.lerp(tracks.points[:, first], tracks.points[:, second], share)
    points = torch.where(known[..., None], between, tracks.points[:, first])
    return TrackSet(points, tracks.state[:, first], tracks.pinned, tracks.ids)


def save_tracks(tracks: TrackSet, file: Path) -> None:
    """Write an .npz that `tracks_from_arrays` reads back. Points that are unspecified are NaN.

    Raises:
        InputError: the file cannot be written.
    """
    points = torch.where((tracks.state != UNSPECIFIED)[..., None], tracks.points, torch.nan)
    content = io.BytesIO()
    np.savez_compressed(
        content,
        points=points.numpy(),
        visible=(tracks.state == VISIBLE).numpy(),
        pinned=tracks.pinned.numpy(),
        ids=tracks.ids.numpy(),
    )
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(content.getvalue())
        part.replace(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from None


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        content: Any = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file.name}: no such file") from None
    except OSError as error:
        raise InputError(f"{file.name}: cannot be read ({error.strerror})") from error
    try:
        if file.suffix.lower() == ".pth":
            content = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if isinstance(content, Tensor):
                return _named({"points": content.numpy()})
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _named({"points": loaded})
        return _named({name: loaded[name] for name in loaded.files})
    except InputError:
        raise
    except Exception as error:  # on a damaged file the unpickler and the zip reader raise whatever comes up
        raise InputError("not a NumPy file of plain arrays, or a truncated one") from error


def _named(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by our names for them."""
    ours = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
    out: dict[str, np.ndarray] = {}
    for key, value in arrays.items():
        if key not in ours:
            raise InputError(unknown_key(key, ours))
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            raise InputError(f"{key}: expected numbers")
        out[ours[key]] = value
    return out


def _layout_of(points: np.ndarray) -> Layout:
    if points.ndim == 4 and points.shape[2:] == (1, 3):
        return "ati"
    if points.ndim == 4 and points.shape[0] == 1 and points.shape[3] == 2:
        return "wan-move"
    if points.ndim == 3 and points.shape[2] == 2:
        return "tracks"
    raise InputError(
        f"points: expected shape (tracks, frames, 2), (1, frames, tracks, 2) or (tracks, frames, 1, 3), "
        f"found {points.shape}"
    )


def _in_order(arrays: Mapping[str, np.ndarray], layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, T, 2) and visibility (N, T) of any layout."""
    points = arrays["points"]
    if layout == "ati":
        if points.ndim != 4 or points.shape[2:] != (1, 3):
            raise InputError(f"points: expected shape (tracks, frames, 1, 3), found {points.shape}")
        # ATI takes both orders and tells them apart by its fixed length
        rows = (
            points[:, :, 0].swapaxes(0, 1) if points.shape[0] == 121 != points.shape[1] else points[:, :, 0]
        )
        return rows[..., :2] / _ATI_SCALE, rows[..., 2] / _ATI_SCALE > 0.5
    visible = arrays.get("visible")
    if layout == "wan-move":
        points = points[0] if points.ndim == 4 and points.shape[0] == 1 else points
        if points.ndim != 3 or points.shape[2] != 2:
            raise InputError(f"points: expected shape (1, frames, tracks, 2), found {arrays['points'].shape}")
        points = points.swapaxes(0, 1)
        if visible is not None:
            visible = visible[0] if visible.ndim == 3 and visible.shape[0] == 1 else visible
            visible = visible.swapaxes(0, 1) if visible.ndim == 2 else visible
    if points.ndim != 3 or points.shape[2] != 2:
        raise InputError(f"points: expected shape (tracks, frames, 2), found {points.shape}")
    shape = points.shape[:2]
    if visible is None:
        visible = np.ones(shape, bool)
    return points, _shaped(visible, shape, "visible")


def _normalised(points: np.ndarray, layout: Layout, size: tuple[float, float] | None) -> np.ndarray:
    if size is None:
        raise InputError(
            "size: pixel coordinates need the size of their pictures, as in a .json file with "
            '{"arrays": {"file": "tracks.npy", "size": [832, 480]}}'
        )
    if not all(0 < side <= 65536 for side in size):
        raise InputError(f"size: expected width and height above 0, found {size[0]:g} and {size[1]:g}")
    offset = 0.5 if layout == "wan-move" else 0.0
    return ((points + offset) / np.array(size)).astype(np.float32)


def _shaped(array: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    if array.shape != shape:
        raise InputError(f"{name}: expected shape {shape}, found {array.shape}")
    return array > 0.5 if array.dtype.kind == "f" else array.astype(bool)


def _pair(size: np.ndarray | None) -> tuple[float, float] | None:
    if size is None:
        return None
    if size.shape != (2,):
        raise InputError(f"size: expected (width, height), found shape {size.shape}")
    return float(size[0]), float(size[1])


def _single(value: np.ndarray | None) -> float | None:
    if value is None:
        return None
    if value.size != 1:
        raise InputError(f"fps: expected one number, found shape {value.shape}")
    return float(value.reshape(()))
