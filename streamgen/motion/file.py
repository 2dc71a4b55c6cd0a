"""Motion files that become a `TrackSet`, and back: JSON, NumPy files, and clips whose motion is taken.

JSON, every part optional, times in seconds, coordinates normalised (x, y) in [0, 1], files relative to it:

    {"frames": 96,
     "tracks": [{"points": [[x, y], null, ...], "visible": [true, ...], "pinned": false, "start": 0}],
     "drags":  [{"from": [x, y], "to": [x, y], "start": 0, "seconds": 2, "hold": 0, "ease": "linear"}],
     "paths":  [{"points": [[t, x, y], ...]}],
     "pins":   [[x, y], ...],
     "boxes":  [{"name": "ball", "from": [left, top, right, bottom], "to": [...], "start": 0, "seconds": 2,
                 "hold": 0, "spacing": 0.1},
                {"path": [[t, left, top, right, bottom], ...]}],
     "grids":  [{"points": [[t, x, y], ...], "size": [0.3, 0.2], "spacing": 0.1},
                {"at": [x, y], "size": [0.3, 0.2], "pinned": true}],
     "camera": {"pan": [dx, dy], "zoom": 1.2, "rotate": 0, "grid": 4, "aspect": 1, "start": 0, "seconds": 2},
     "arrays": {"file": "tracks.npy", "visible": "visible.npy", "layout": "wan-move", "size": [832, 480],
                "fps": 16, "start": 0},
     "clip":   {"file": "dance.mp4", "points": 64, "seconds": 2, "start": 0, "tracker": "lucas-kanade"},
     "masks":  [{"box": [left, top, right, bottom], "start": 0, "seconds": 1}, {"file": "mask.png"}]}

A track has one point a frame, null where it is unspecified, and may have an "id". A box takes what is in it
to another place and size; a later one is in front where they cross. A grid's tracks go along one path
together, or hold still. Inside of masks all motion is left unspecified. A motion file may also be an .npz,
.npy or .pth of tracks (see `motion.arrays`), or a video, whose motion is taken (see `motion.from_clip`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import InputError
from ..suggest import shorten, unknown_key
from .arrays import SUFFIXES as ARRAY_SUFFIXES
from .arrays import ArrayOptions, tracks_from_arrays
from .boxes import SPACING, Box, grid, held_grid, layered, patch
from .from_clip import SUFFIXES as CLIP_SUFFIXES
from .from_clip import ClipMotion, tracks_of_clip
from .masks import Mask, box_mask, masked, read_mask
from .sources import with_folder
from .tracks import (
    MAX_POINTS,
    OCCLUDED,
    UNSPECIFIED,
    VISIBLE,
    Ease,
    TrackSet,
    camera,
    drag,
    frame_at,
    merge,
    path,
    pins,
)

MAX_SECONDS = 24 * 3600

T = TypeVar("T")

# What a motion object may have in it: these say something by themselves, the others do not.
_SAYING = ("tracks", "drags", "paths", "boxes", "grids", "pins", "camera", "arrays", "clip")
_PARTS = (*_SAYING, "masks", "frames")

_EASES: dict[str, Ease] = {"linear": "linear", "smooth": "smooth"}


def load_motion(
    source: str | Path | Mapping[str, Any], fps: float, frames: int | None = None, aspect: float = 1.0
) -> TrackSet:
    """Tracks from a .json, .npz or .npy file, or from the parsed JSON object itself.

    Args:
        source: the file, or the object.
        fps: frames per second of the stream; turns the seconds of the file into frames.
        frames: frames of the stream, used where the file has no length of its own (pins). The result may be
            shorter or longer: the longest item decides, or "frames" in the file.
        aspect: width / height of the stream, for clips and masks, which are cropped to it.

    Raises:
        InputError: one line that names the file, the item and what is wrong with it.
    """
    name = "motion" if isinstance(source, Mapping) else str(source)
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be above 0, found {fps}")
    try:
        if isinstance(source, Mapping):
            return _from_object(source, _Stream(fps, frames, aspect))
        file = Path(source)
        if file.suffix.lower() in ARRAY_SUFFIXES:
            return tracks_from_arrays(file, fps)
        if file.suffix.lower() in CLIP_SUFFIXES:
            return tracks_of_clip(file, fps, aspect)
        return _from_object(with_folder(_read_json(file), file.parent), _Stream(fps, frames, aspect))
    except (ValueError, InputError) as error:
        raise InputError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error


@dataclass(frozen=True)
class _Stream:
    """What a motion is for: frames per second, frames (None: unknown), width / height."""

    fps: float
    frames: int | None
    aspect: float


def motion_to_json(tracks: TrackSet) -> dict[str, Any]:
    """The JSON object that `load_motion` turns into the same tracks (whatever the fps)."""
    rows: list[dict[str, Any]] = []
    for index in range(tracks.num_tracks):
        states = tracks.state[index].tolist()
        points = tracks.points[index].tolist()
        row: dict[str, Any] = {
            "id": int(tracks.ids[index]),
            "points": [at if state else None for at, state in zip(points, states, strict=True)],
            "pinned": bool(tracks.pinned[index]),
        }
        if OCCLUDED in states:
            row["visible"] = [state != OCCLUDED for state in states]
        rows.append(row)
    return {"frames": tracks.num_frames, "tracks": rows}


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError("no such file") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise InputError("not a JSON file (nor .npz or .npy)") from None
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise InputError("not valid JSON (nested too deeply)") from None
    if not isinstance(content, dict):
        raise InputError(f'expected an object such as {{"drags": [...]}}, found {shorten(content)}')
    return content


def _from_object(content: Mapping[str, Any], stream: _Stream) -> TrackSet:
    fps = stream.fps
    _check_keys(content, _PARTS, "")
    total = content.get("frames")
    if total is not None and (not isinstance(total, int) or isinstance(total, bool) or total < 1):
        raise InputError(f"frames: expected a whole number above 0, found {shorten(total)}")
    if total is not None and total > MAX_SECONDS * fps:
        raise InputError(f"frames: {total} is longer than 24 hours")
    items = _going(content, stream, total)
    length = total or max([item.num_frames for item in items] + [stream.frames or 0])
    if pinned := _rows(content, "pins"):
        items.append(_pins(pinned, length))
    for index, row in enumerate(_rows(content, "grids")):
        if _holds(row):
            items.append(_located(f"grids[{index}]", _held, row, length, stream))
    if not items:
        listed = ", ".join(f'"{part}"' for part in _SAYING[:-1])
        raise InputError(f'empty: no {listed} or "clip"')
    _check_size(sum(item.num_tracks for item in items), length)
    tracks = merge(items)
    tracks = tracks.slice(0, total) if total is not None else tracks
    masks = [_located(f"masks[{i}]", _mask, row, fps) for i, row in enumerate(_rows(content, "masks"))]
    tracks = masked(tracks, masks)
    if tracks.is_empty:
        raise InputError("empty: no point is given in any frame")
    return tracks


def _going(content: Mapping[str, Any], stream: _Stream, total: int | None) -> list[TrackSet]:
    """All that has a length of its own."""
    fps = stream.fps
    items = [_located(f"tracks[{i}]", _track, row, fps, total) for i, row in _listed(content, "tracks")]
    items += [_located(f"drags[{i}]", _drag, row, fps) for i, row in _listed(content, "drags")]
    items += [_located(f"paths[{i}]", _path, row, fps) for i, row in _listed(content, "paths")]
    items += _boxes(_rows(content, "boxes"), stream)
    grids = [(i, row) for i, row in _listed(content, "grids") if not _holds(row)]
    items += [_located(f"grids[{i}]", _grid, row, stream) for i, row in grids]
    for part, build in (("camera", _camera), ("arrays", _arrays)):
        if content.get(part) is not None:
            items.append(_located(part, build, content[part], fps))
    if content.get("clip") is not None:
        items.append(_located("clip", _clip, content["clip"], stream))
    return items


def _pins(pinned: list[Any], length: int) -> TrackSet:
    if length < 1:
        raise InputError('pins: have no length of their own, add "frames"')
    where = [_numbers(point, 2, f"pins[{index}]") for index, point in enumerate(pinned)]
    _check_size(len(where), length)
    return _located("pins", pins, where, length)


def _track(row: Any, fps: float, total: int | None) -> TrackSet:
    _check_keys(row, ("points", "visible", "pinned", "start", "id"), "")
    points = row.get("points")
    if not isinstance(points, list) or not points:
        raise InputError("points: expected a list of [x, y] or null, one a frame")
    start = frame_at(_seconds(row, "start", 0.0), fps)
    if total is not None and start + len(points) != total:
        raise InputError(
            f"expected {total - start} points (frames {total}, start frame {start}), found {len(points)}"
        )
    visible = row.get("visible", [True] * len(points))
    if not isinstance(visible, list) or len(visible) != len(points) or not _all_bools(visible):
        raise InputError(f"visible: expected {len(points)} times true or false")
    pinned, track_id = row.get("pinned", False), row.get("id", 0)
    if not isinstance(pinned, bool):
        raise InputError(f"pinned: expected true or false, found {shorten(pinned)}")
    if not isinstance(track_id, int) or isinstance(track_id, bool) or not 0 <= track_id < 2**62:
        raise InputError(f"id: expected a whole number from 0, found {shorten(track_id)}")
    _check_size(1, start + len(points))
    where = [
        [0.0, 0.0] if point is None else _numbers(point, 2, f"points[{index}]")
        for index, point in enumerate(points)
    ]
    state = [
        UNSPECIFIED if point is None else VISIBLE if seen else OCCLUDED
        for point, seen in zip(points, visible, strict=True)
    ]
    tracks = TrackSet.from_points(
        torch.tensor([where]), torch.tensor([state]), pinned, torch.tensor([track_id])
    )
    return tracks.slice(-start, len(points))


def _drag(row: Any, fps: float) -> TrackSet:
    _check_keys(row, ("from", "to", "start", "seconds", "hold", "ease"), "")
    start = frame_at(_seconds(row, "start", 0.0), fps)
    moving = max(frame_at(_seconds(row, "seconds"), fps) + 1, 2)
    hold = frame_at(_seconds(row, "hold", 0.0), fps)
    ease = row.get("ease", "linear")
    if not isinstance(ease, str) or ease not in _EASES:
        raise InputError(f"ease: expected 'linear' or 'smooth', found {shorten(ease)}")
    begin, end = _numbers(row.get("from"), 2, "from"), _numbers(row.get("to"), 2, "to")
    tracks = drag(begin, end, moving + hold, hold, _EASES[ease])
    return tracks.slice(-start, tracks.num_frames)


def _path(row: Any, fps: float) -> TrackSet:
    _check_keys(row, ("points",), "")
    points = row.get("points")
    if not isinstance(points, list):
        raise InputError("points: expected a list of [seconds, x, y]")
    knots = [_numbers(point, 3, f"points[{index}]") for index, point in enumerate(points)]
    if any(knot[0] > MAX_SECONDS for knot in knots):
        raise InputError("points: a time is beyond 24 hours")
    return path(knots, fps)


def _boxes(rows: list[Any], stream: _Stream) -> list[TrackSet]:
    """Tracks of all boxes; those that are covered by one in front are occluded."""
    boxes: list[Box] = []
    tracks: list[TrackSet] = []
    for index, row in enumerate(rows):
        box, own = _located(f"boxes[{index}]", _box, row, stream)
        boxes.append(box)
        tracks.append(own)
    return _located("boxes", layered, boxes, tracks, stream.fps)


def _box(row: Any, stream: _Stream) -> tuple[Box, TrackSet]:
    _check_keys(row, ("name", "path", "from", "to", "start", "seconds", "hold", "spacing"), "")
    name = row.get("name", "")
    if not isinstance(name, str) or len(name) > 80:
        raise InputError(f"name: expected text of up to 80 characters, found {shorten(name)}")
    if ("path" in row) == ("from" in row):
        raise InputError("expected either path or from")
    if "path" in row:
        if others := sorted({"to", "start", "seconds", "hold"} & row.keys()):
            raise InputError(f"{others[0]}: a path has times of its own")
        if not isinstance(row["path"], list) or not row["path"]:
            raise InputError("path: expected a list of [seconds, left, top, right, bottom]")
        knots = [_numbers(knot, 5, f"path[{index}]") for index, knot in enumerate(row["path"])]
    else:
        begin = _numbers(row["from"], 4, "from")
        end = _numbers(row.get("to", begin), 4, "to")
        start, length = _seconds(row, "start", 0.0), _seconds(row, "seconds")
        knots = [[start, *begin], [start + max(length, 1 / stream.fps), *end]]
        if hold := _seconds(row, "hold", 0.0):
            knots.append([knots[-1][0] + hold, *end])
    if any(knot[0] > 2 * MAX_SECONDS for knot in knots):
        raise InputError("a time is beyond 24 hours")
    box = Box(torch.tensor(knots, dtype=torch.float64), name)
    _check_size(len(box.shares(_spacing(row), stream.aspect)), frame_at(max(knots[-1][0], 0), stream.fps))
    return box, box.tracks(stream.fps, _spacing(row), stream.aspect)


def _grid(row: Any, stream: _Stream) -> TrackSet:
    _check_keys(row, ("points", "size", "spacing"), "")
    points = row.get("points")
    if not isinstance(points, list) or not points:
        raise InputError("expected points, a list of [seconds, x, y], or at: [x, y]")
    knots = [_numbers(point, 3, f"points[{index}]") for index, point in enumerate(points)]
    if any(knot[0] > MAX_SECONDS for knot in knots):
        raise InputError("points: a time is beyond 24 hours")
    size = _numbers(row.get("size"), 2, "size")
    count = len(patch(size, _spacing(row), stream.aspect))
    _check_size(count, frame_at(max(knots[-1][0], 0), stream.fps))
    return grid(knots, stream.fps, size, _spacing(row), stream.aspect)


def _holds(row: Any) -> bool:
    """Whether a grid holds still: it is as long as the rest then."""
    return isinstance(row, Mapping) and "at" in row


def _held(row: Any, length: int, stream: _Stream) -> TrackSet:
    _check_keys(row, ("at", "size", "spacing", "pinned"), "")
    if row.get("pinned", True) is not True:
        raise InputError("pinned: a grid at one place is pinned; one that goes has points")
    if length < 1:
        raise InputError('has no length of its own, add "frames"')
    size = _numbers(row.get("size"), 2, "size")
    _check_size(len(patch(size, _spacing(row), stream.aspect)), length)
    return held_grid(_numbers(row["at"], 2, "at"), length, size, _spacing(row), stream.aspect)


def _spacing(row: Mapping[str, Any]) -> float:
    return _numbers([row.get("spacing", SPACING)], 1, "spacing")[0]


def _camera(row: Any, fps: float) -> TrackSet:
    _check_keys(row, ("pan", "zoom", "rotate", "grid", "aspect", "start", "seconds"), "")
    start = frame_at(_seconds(row, "start", 0.0), fps)
    count = max(frame_at(_seconds(row, "seconds"), fps) + 1, 2)
    grid = row.get("grid", 4)
    if not isinstance(grid, int) or isinstance(grid, bool):
        raise InputError(f"grid: expected a whole number, found {shorten(grid)}")
    zoom, rotate, aspect = _numbers(
        [row.get("zoom", 1.0), row.get("rotate", 0.0), row.get("aspect", 1.0)], 3, "zoom, rotate, aspect"
    )
    pan = _numbers(row.get("pan", [0.0, 0.0]), 2, "pan")
    if max(abs(pan[0]), abs(pan[1])) > 1000 or not 1e-3 <= zoom <= 1e3 or abs(rotate) > 36_000:
        raise InputError("expected |pan| <= 1000, zoom in 0.001..1000 and |rotate| <= 36000 degrees")
    tracks = camera(frames=count, pan=pan, zoom=zoom, rotate=rotate, grid=grid, aspect=aspect)
    return tracks.slice(-start, count)


def _arrays(row: Any, fps: float) -> TrackSet:
    _check_keys(row, ("file", "visible", "layout", "size", "fps", "start"), "")
    size = None if row.get("size") is None else _numbers(row["size"], 2, "size")
    rate = None if row.get("fps") is None else _numbers([row["fps"]], 1, "fps")[0]
    if rate is not None and not 0 < rate <= 1000:
        raise InputError(f"fps: expected above 0 and at most 1000, found {rate:g}")
    visible = None if row.get("visible") is None else _file(row, "visible")
    options = ArrayOptions(visible, row.get("layout"), None if size is None else (size[0], size[1]), rate)
    return _delayed(tracks_from_arrays(_file(row, "file"), fps, options), row, fps)


def _clip(row: Any, stream: _Stream) -> TrackSet:
    _check_keys(row, ("file", "points", "seconds", "start", "tracker", "weights"), "")
    points = row.get("points", 64)
    if not isinstance(points, int) or isinstance(points, bool):
        raise InputError(f"points: expected a whole number, found {shorten(points)}")
    seconds = None if row.get("seconds") is None else _seconds(row, "seconds")
    weights = None if row.get("weights") is None else _file(row, "weights")
    wanted = ClipMotion(seconds, points, row.get("tracker", "lucas-kanade"), weights)
    return _delayed(tracks_of_clip(_file(row, "file"), stream.fps, stream.aspect, wanted), row, stream.fps)


def _mask(row: Any, fps: float) -> Mask:
    _check_keys(row, ("box", "file", "start", "seconds"), "")
    if (row.get("box") is None) == (row.get("file") is None):
        raise InputError("expected either box or file")
    start = frame_at(_seconds(row, "start", 0.0), fps)
    stop = None if row.get("seconds") is None else start + frame_at(_seconds(row, "seconds"), fps)
    if row.get("file") is not None:
        return Mask(read_mask(_file(row, "file")), start, stop)
    left, top, right, bottom = _numbers(row["box"], 4, "box")
    return Mask(box_mask(left, top, right, bottom), start, stop)


def _file(row: Mapping[str, Any], key: str) -> Path:
    name = row.get(key)
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{key}: expected a file name, found {shorten(name)}")
    return Path(name)


def _delayed(tracks: TrackSet, row: Mapping[str, Any], fps: float) -> TrackSet:
    """The tracks with frame 0 at the row's "start"."""
    start = frame_at(_seconds(row, "start", 0.0), fps)
    _check_size(tracks.num_tracks, start + tracks.num_frames)
    return tracks.slice(-start, tracks.num_frames)


def _located(where: str, build: Callable[..., T], *arguments: Any) -> T:
    try:
        made = build(*arguments)
    except (ValueError, InputError) as error:
        raise InputError(f"{where}: {error}") from error
    if isinstance(made, TrackSet):
        _check_size(made.num_tracks, made.num_frames)
    return made


def _rows(content: Mapping[str, Any], key: str) -> list[Any]:
    rows = content.get(key, [])
    if not isinstance(rows, list):
        raise InputError(f"{key}: expected a list, found {shorten(rows)}")
    return rows


def _listed(content: Mapping[str, Any], key: str) -> Iterable[tuple[int, Any]]:
    return enumerate(_rows(content, key))


def _check_keys(row: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(row, Mapping):
        raise InputError(f"expected an object, found {shorten(row)}")
    for key in row:
        if key not in known:
            raise InputError(f"{where}{unknown_key(key, known)}")


def _check_size(tracks: int, frames: int) -> None:
    if tracks * frames > MAX_POINTS:
        raise InputError(f"too large: {tracks} tracks of {frames} frames (at most {MAX_POINTS} points)")


def _seconds(row: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = row.get(key, default)
    if value is None:
        raise InputError(f"{key}: missing, expected a number of seconds")
    (number,) = _numbers([value], 1, key)
    if not 0 <= number <= MAX_SECONDS:
        raise InputError(f"{key}: expected seconds from 0 to {MAX_SECONDS}, found {number:g}")
    return number


def _numbers(values: Any, count: int, where: str) -> list[float]:
    if not isinstance(values, list | tuple) or len(values) != count:
        raise InputError(f"{where}: expected {count} numbers, found {shorten(values)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
            raise InputError(f"{where}: expected finite numbers, found {shorten(values)}")
    return [float(value) for value in values]


def _all_bools(values: list[Any]) -> bool:
    return all(isinstance(value, bool) for value in values)
