"""Gestures: named motions of a stream, each with its own beginning, that come, move and go without each
other.

An event changes some of them and leaves the others: a drag keeps the pins. What is over is released. Tracks
of different gestures that have one id get another for as long as the gesture lasts, since a model tells
tracks apart by their ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..suggest import unknown_key
from .tracks import UNSPECIFIED, TrackSet, merge

#: The gesture that an event's plain `motion` is.
MOTION = "motion"


@dataclass(frozen=True, eq=False)
class Gesture:
    """Tracks in force.

    Attributes:
        name: what later events call it.
        tracks: with ids that no other gesture in force has.
        start: the pixel frame of the stream where the tracks' frame 0 lies.
        asked: the ids as they were asked for.
    """

    name: str
    tracks: TrackSet
    start: int
    asked: tuple[int, ...]

    @property
    def end(self) -> int:
        """The pixel frame behind its last one."""
        return self.start + self.tracks.num_frames


def changed(
    gestures: Sequence[Gesture], changes: Mapping[str, TrackSet | None], frame: int
) -> tuple[Gesture, ...]:
    """The gestures in force once some are added, moved (those whose name is there already) or let go of;
    those that are over at `frame` and were not moved are gone.

    Args:
        gestures: those of the chunk before: one that ends just here may be moved on and keeps its ids.
        changes: tracks that begin at `frame`; None, or tracks without points, lets go.

    Raises:
        InputError: a name to let go of that is not in force; see `unknown_gesture`.
    """
    now = {gesture.name: gesture for gesture in gestures}
    begins = {name: tracks for name, tracks in changes.items() if tracks is not None and not tracks.is_empty}
    in_force = [gesture.name for gesture in released(gestures, frame)]
    for name in changes.keys() - begins.keys():
        if name not in in_force and changes[name] is None:
            raise InputError(unknown_gesture(name, in_force))
    now = {name: gesture for name, gesture in now.items() if name in begins or name not in changes}
    # always in one order, since ids depend on it: a replay has the same changes in another one
    for name in sorted(begins, key=lambda name: (name != MOTION, name)):
        before = now.pop(name, None)
        now[name] = _begun(name, begins[name], frame, before, released(list(now.values()), frame))
    return released(list(now.values()), frame)


def unknown_gesture(name: str, known: Sequence[str]) -> str:
    """Why a gesture cannot be let go of."""
    if not known:
        return f"gesture {name!r}: nothing is in force to let go of"
    return unknown_key(name, known, noun="gesture")


def asked_tracks(gesture: Gesture) -> TrackSet:
    """A gesture's tracks with the ids that were asked for."""
    ids = torch.tensor(gesture.asked, dtype=torch.int64)
    return TrackSet(gesture.tracks.points, gesture.tracks.state, gesture.tracks.pinned, ids)


def released(gestures: Sequence[Gesture], frame: int) -> tuple[Gesture, ...]:
    """Those that are not over at a pixel frame."""
    return tuple(gesture for gesture in gestures if gesture.end > frame)


def tracks_between(gestures: Sequence[Gesture], start: int, stop: int) -> TrackSet | None:
    """All tracks that say something in pixel frames `[start, stop)` of the stream; None where none does."""
    parts = []
    for gesture in gestures:
        tracks = gesture.tracks
        first, last = max(start - gesture.start, 0), min(stop - gesture.start, tracks.num_frames)
        if first >= last:
            continue
        alive = (tracks.state[:, first:last] != UNSPECIFIED).any(1)
        if bool(alive.any()):
            speaking = tracks if bool(alive.all()) else tracks.select(alive)
            parts.append(speaking.slice(start - gesture.start, stop - gesture.start))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else merge(parts)


def _begun(
    name: str, tracks: TrackSet, frame: int, before: Gesture | None, others: Sequence[Gesture]
) -> Gesture:
    """A gesture whose ids are none of the others'; one that is moved keeps those it had."""
    taken = {number for other in others for number in other.tracks.ids.tolist()}
    had = {} if before is None else dict(zip(before.asked, before.tracks.ids.tolist(), strict=True))
    asked = tuple(tracks.ids.tolist())
    given: list[int] = []
    free = 0
    for wanted in asked:
        number = had.get(wanted, wanted)
        if number in taken:
            while free in taken or free in asked:
                free += 1
            number = free
        taken.add(number)
        given.append(number)
    ids = torch.tensor(given, dtype=torch.int64)
    if given != list(asked):
        tracks = TrackSet(tracks.points, tracks.state, tracks.pinned, ids)
    return Gesture(name, tracks, frame, asked)
