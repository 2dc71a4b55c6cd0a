"""A stream's changes as blocks that can be moved, stretched, taken out and added.

A timeline has one event for all that took effect with a chunk. Here it is taken apart into what people see
as one thing: words, settings, a gesture from taking hold to letting go. What has to be played again after an
edit begins at the first frame where the two differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from streamgen import InputError, StreamEvent
from streamgen.motion.tracks import UNSPECIFIED, TrackSet
from streamgen.stream.prompts import Over, blend_name
from streamgen.stream.timeline import Applied
from streamgen.suggest import shorten

from .drawn_tracks import box_tracks, camera_tracks, path_tracks
from .messages import Box, Camera, Path
from .motion_words import box_name, camera_name, way_name

# Of one stream, against nonsense.
MAX_PLANNED = 20_000
MAX_SECONDS = 24 * 3600.0
# The block of the words that a stream begins with, which have no other place.
FIRST = "first"


@dataclass(frozen=True, eq=False)
class Planned:
    """One change at a frame: the first chunk that begins there or later takes it.

    Attributes:
        block: the id of the block that it is part of.
        kind: as the strip has it.
        told: whether the strip shows it; of a gesture in many parts the first one is.
    """

    frame: int
    event: StreamEvent
    block: str
    kind: str
    label: str
    told: bool = True


def first_words(opening: StreamEvent) -> Planned:
    """The words that a stream begins with, as a block."""
    words = replace(opening, motion=None, gestures=None, settings=None)
    label = opening.prompt or blend_name(opening.parts) or "words"
    return Planned(0, words, FIRST, "prompt", label)


def taken_apart(entries: Iterable[Applied]) -> list[Planned]:
    """The changes of a timeline, one by one, without its opening."""
    made: list[Planned] = []
    # the block of each gesture, and the frame where it is over
    open_now: dict[str, tuple[str, int]] = {}
    for entry in entries:
        frame, event = entry.frame, entry.event
        if event.lets_go_of_all:
            released = StreamEvent(motion=event.motion)
            made.append(Planned(frame, released, f"r{frame}", "release", "release"))
            open_now.clear()
        for name, tracks in event.gesture_changes.items():
            block, end = open_now.get(name, ("", -1))
            begins = end < frame
            if begins:
                block = f"g{frame}-{name}"
            end = frame if tracks is None else frame + tracks.num_frames
            open_now[name] = block, end
            one = StreamEvent(gestures={name: tracks})
            made.append(Planned(frame, one, block, kind_of(name), name, begins))
        made += _said(frame, event)
    return made


def _said(frame: int, event: StreamEvent) -> list[Planned]:
    """Words, past and settings of an event."""
    made = []
    if event.changes_text:
        words = replace(event, motion=None, gestures=None, settings=None)
        label = event.prompt or blend_name(event.parts) or "words"
        made.append(Planned(frame, words, f"w{frame}", "prompt", label))
    elif event.cache not in (None, "keep"):
        past = StreamEvent(cache=event.cache, sink=event.sink)
        made.append(Planned(frame, past, f"c{frame}", "cache", str(event.cache)))
    if event.settings:
        label = ", ".join(f"{name} {value}" for name, value in event.settings.items())
        made.append(Planned(frame, StreamEvent(settings=event.settings), f"s{frame}", "settings", label))
    return made


def kind_of(gesture: str) -> str:
    """What kind of thing a gesture is, by its name."""
    kind = gesture.split(" ", maxsplit=1)[0]
    return kind if kind in ("drag", "path", "box", "pins", "camera") else "path"


def rows(items: Sequence[Planned], now: int, chunk: int) -> list[dict[str, Any]]:
    """Blocks for the page, in order: words last until the next ones, gestures until they are over.

    Args:
        now: the stream's next frame; what lies before it has taken effect.
        chunk: frames of a chunk.
    """
    made = []
    words = sorted(item.frame for item in items if item.kind == "prompt")
    for block in dict.fromkeys(item.block for item in items):
        parts = [item for item in items if item.block == block]
        first, over = parts[0], 0
        if first.kind == "prompt":
            end: int | None = next((frame for frame in words if frame > first.frame), None)
            over = _frames_over(first.event, chunk)
        elif first.event.gesture_changes:
            end = max(part.frame + _length(part.event) for part in parts)
        else:
            end = first.frame
        row = {"id": block, "kind": first.kind, "label": first.label, "frame": first.frame, "end": end}
        made.append(row | {"over": over, "planned": first.frame >= now, "settings": first.event.settings})
    return sorted(made, key=lambda row: row["frame"])


def _length(event: StreamEvent) -> int:
    changes = event.gesture_changes.values()
    return max((tracks.num_frames for tracks in changes if tracks is not None), default=0)


def _frames_over(event: StreamEvent, chunk: int) -> int:
    over = event.passage
    return 0 if over is None or over.chunks is None else over.chunks * chunk


@dataclass(frozen=True)
class Edit:
    """One change of the blocks; what is None stays.

    Attributes:
        block: the id of the block; None adds one.
        copy: with no block, the one to begin again at `frame`.
        frame: where it begins.
        frames: how long a gesture takes, or the way to new words (0: at once).
        prompt, settings: what it says.
        motion: what a new block moves, from where it was drawn on.
        delete: take it out.
    """

    block: str | None = None
    copy: str | None = None
    frame: int | None = None
    frames: int | None = None
    prompt: str | None = None
    settings: Mapping[str, Any] | None = None
    motion: Path | Box | Camera | None = None
    delete: bool = False


def edited(items: Sequence[Planned], edits: Sequence[Edit], fps: float, aspect: float = 1.0) -> list[Planned]:
    """The changes with some edits made, in order of frames.

    Args:
        fps, aspect: frames per second, and width / height of the picture.

    Raises:
        InputError: a block that is not there, or an edit that cannot be.
    """
    made = list(items)
    for number, edit in enumerate(edits):
        name = edit.block or edit.copy
        parts = [item for item in made if item.block == name]
        if name is not None and not parts:
            raise InputError(f"edit: block: expected one of the timeline, found {name[:60]!r}")
        if edit.frame is not None and not 1 <= edit.frame <= MAX_SECONDS * fps:
            raise InputError(f"edit: frame: expected 1 to {MAX_SECONDS * fps:.0f}, found {edit.frame}")
        if edit.frames is not None and edit.frames > MAX_SECONDS * fps:
            raise InputError(
                f"edit: frames: expected at most {MAX_SECONDS * fps:.0f}, found {shorten(edit.frames)}"
            )
        if edit.block == FIRST and (edit.delete or edit.frame or edit.frames):
            raise InputError("edit: the first words can be changed; they begin the stream, at once")
        if edit.block is not None:
            made = [item for item in made if item.block != edit.block]
        if not edit.delete:
            new = _new_id(made, number)
            made += _changed(parts, edit, new, fps) if parts else _added(edit, new, fps, aspect)
    if len(made) > MAX_PLANNED:
        raise InputError(f"edit: expected at most {MAX_PLANNED} changes, found {len(made)}")
    return sorted(made, key=lambda item: item.frame)


def _new_id(items: Sequence[Planned], number: int) -> str:
    taken = {item.block for item in items}
    while f"n{number}" in taken:
        number += 1
    return f"n{number}"


def _added(edit: Edit, block: str, fps: float, aspect: float) -> list[Planned]:
    if edit.frame is None:
        raise InputError("edit: frame: expected where the new block begins, found nothing")
    if edit.prompt is not None:
        words = [Planned(edit.frame, StreamEvent(edit.prompt), block, "prompt", edit.prompt)]
        return words if edit.frames is None else _changed(words, replace(edit, block=block), block, fps)
    if edit.settings:
        return [replace(_said(edit.frame, StreamEvent(settings=edit.settings))[0], block=block)]
    if edit.motion is not None:
        kind, label, tracks = _moved(edit.motion, fps, aspect)
        # a gesture of its own, unless it is the camera, of which there is one
        name = kind if kind == "camera" else f"{kind} {edit.frame} {block}"
        drawn = [Planned(edit.frame, StreamEvent(gestures={name: tracks}), block, kind, label)]
        return _stretched(drawn, edit.frame, edit.frames, block)
    raise InputError("edit: expected a prompt, settings, motion or a block to copy, found none of them")


def _moved(motion: Path | Box | Camera, fps: float, aspect: float) -> tuple[str, str, TrackSet]:
    """Kind, label and tracks of what was drawn; it begins where it was drawn, since nothing is there yet."""
    try:
        if isinstance(motion, Camera):
            if motion.at_rest or not motion.seconds:
                raise ValueError("camera: expected a move of so many seconds")
            tracks = camera_tracks(motion, motion.seconds, fps, aspect)
            return "camera", camera_name(motion), tracks
        if isinstance(motion, Box):
            first, last = motion.knots[0][1:], motion.knots[-1][1:]
            at = (first[0] + first[2]) / 2, (first[1] + first[3]) / 2
            tracks = box_tracks(motion.knots, at, motion.spacing, motion.name, fps, aspect)[1]
            return "box", box_name(motion.name or "something", first, last), tracks
        at = motion.points[0][1], motion.points[0][2]
        tracks = path_tracks(motion.points, at, motion.grid, fps, aspect)[1]
        return "path", way_name("something", at, motion.points[-1][1:]), tracks
    except ValueError as error:
        raise InputError(f"edit: {error}") from None


def _changed(parts: list[Planned], edit: Edit, new: str, fps: float) -> list[Planned]:
    """A block moved, stretched, or with other words or settings."""
    begin = parts[0].frame
    start = begin if edit.frame is None else edit.frame
    block = new if edit.block is None else edit.block
    first = parts[0].event
    if first.gesture_changes:
        return _stretched(parts, start, edit.frames, block)
    event = first
    if edit.prompt is not None and first.changes_text:
        event = replace(event, prompt=edit.prompt, blend=None, prompt_embeds=None)
    if edit.settings and first.settings:
        event = replace(event, settings=edit.settings)
    if edit.frames is not None and first.changes_text:
        before = event.passage or Over(seconds=1.0)
        over = replace(before, seconds=edit.frames / fps, chunks=None) if edit.frames else None
        cache = None if over is not None and event.cache in ("clear", "rebuild") else event.cache
        event = replace(event, over=over, cache=cache)
    label = (_said(start, event) or [parts[0]])[0].label
    return [replace(parts[0], frame=start, event=event, block=block, label=label)]


def _stretched(parts: list[Planned], start: int, frames: int | None, block: str) -> list[Planned]:
    """A gesture from another frame on, in another time."""
    begin = parts[0].frame
    length = max(part.frame + _length(part.event) for part in parts) - begin
    share = 1.0 if frames is None or not length else max(1, frames) / length
    made = []
    for part in parts:
        changes = part.event.gesture_changes
        if share != 1.0:
            changes = {name: tracks and resampled(tracks, share) for name, tracks in changes.items()}
        frame = start + round(share * (part.frame - begin))
        made.append(replace(part, frame=frame, event=StreamEvent(gestures=changes), block=block))
    return made


def resampled(tracks: TrackSet, share: float) -> TrackSet:
    """Tracks in another time: `share` times as many frames, positions straight in between, each frame as
    visible as the one that is nearest.
    """
    count, wanted = tracks.num_frames, max(1, round(share * tracks.num_frames))
    at = torch.from_numpy(np.linspace(0, count - 1, wanted))
    low, near = at.floor().long(), at.round().long()
    high = (low + 1).clamp(max=count - 1)
    weight = (at - low)[None, :, None].to(tracks.points.dtype)
    state = tracks.state[:, near]
    # beside a frame that says nothing there is nothing to go half the way to
    known = (tracks.state[:, low] != UNSPECIFIED) & (tracks.state[:, high] != UNSPECIFIED)
    between = torch.lerp(tracks.points[:, low], tracks.points[:, high], weight)
    points = torch.where(known[..., None], between, tracks.points[:, near])
    return TrackSet(points, state, tracks.pinned, tracks.ids)


def first_difference(before: Sequence[Planned], after: Sequence[Planned]) -> int | None:
    """The first frame at which two lists of changes differ; None where they are the same."""
    differing = set(map(_what, before)) ^ set(map(_what, after))
    return min((frame for frame, _ in differing), default=None)


def _what(item: Planned) -> tuple[int, int]:
    # an edit makes a new event, and leaves those that stay as they are
    return item.frame, id(item.event)
