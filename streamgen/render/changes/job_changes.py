"""What a job's shots change, read and checked: at which frames, as tracks, masks and pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.context import ChunkPlan

from ...engine.geometry import LatentGeometry
from ...errors import InputError
from ...live.picture import Picture, mask_of
from ...motion.file import load_motion
from ...motion.gestures import MOTION, Gesture, changed, released
from ...motion.reach import beyond
from ...motion.tracks import TrackSet
from ...pipeline import Pipeline
from ...stream.events import StreamEvent
from ...stream.model import StreamModel
from ...stream.settings import StreamSettings
from ...stream.state import StreamState
from ...suggest import shorten
from ..job import RenderJob
from ..shots import Motion, Shot


@dataclass(frozen=True)
class Change:
    """What a shot changes: its place in messages, the frame of the stream from which on it is due, and its
    motions as tracks.
    """

    place: str
    frame: int
    shot: Shot
    motion: TrackSet | None = None
    gestures: Mapping[str, TrackSet | None] | None = None
    mask: Tensor | None = None
    picture: Picture | None = None

    @property
    def tracks(self) -> dict[str, TrackSet | None]:
        """Tracks by gesture, the plain motion as one of them."""
        return ({} if self.motion is None else {MOTION: self.motion}) | dict(self.gestures or {})

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.tracks and not self.shot.words and self.shot.cache is None and not self.shot.live

    def event(self, settings: Mapping[str, Any] | None = None) -> StreamEvent:
        """As a stream takes it."""
        shot = self.shot
        strength = {} if shot.strength is None else {"strength": shot.strength}
        changed_settings = dict(settings or {}) | strength
        cache: Any = shot.cache
        words = (self.gestures, None, shot.blend, shot.over)
        said = (shot.prompt, self.motion, changed_settings or None, cache, None)
        return StreamEvent(*said, *words, self.mask, self.picture)


def changes_of(pipeline: Pipeline, job: RenderJob, frames: int, first: int = 0) -> list[Change]:
    """What a job's shots change in a clip of so many frames that begins at frame `first` of its stream.

    Raises:
        InputError: a motion that cannot be read.
    """
    geometry = pipeline.geometry

    def load(motion: Motion | None, left: int) -> TrackSet | None:
        if motion is None:
            return None
        return load_motion(motion, geometry.fps, left, geometry.width / geometry.height)

    changes = []
    for index, shot in enumerate(job.shots):
        frame = _frame_of(shot.at_seconds, geometry.fps)
        left = frames - min(frames - 1, frame)
        named = None if shot.gestures is None else {n: load(x, left) for n, x in shot.gestures.items()}
        made = (load(shot.motion, left), named, *_pictures_of(shot, geometry, f"shots[{index}]"))
        changes.append(Change(f"shots[{index}]", first + frame, shot, *made))
    return changes


def _pictures_of(shot: Shot, geometry: LatentGeometry, where: str) -> tuple[Tensor | None, Picture | None]:
    """Mask and picture of a shot.

    Raises:
        InputError: one that cannot be read.
    """
    try:
        mask = None if shot.mask is None else mask_of(shot.mask)
        if shot.picture is None:
            return mask, None
        use: Any = shot.picture["use"]
        return mask, Picture.read(shot.picture["file"], geometry.height, geometry.width, use)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def picture_notes(changes: Sequence[Change]) -> tuple[str, ...]:
    """Of which pictures something is cropped."""
    noted = [(change, change.picture.note) for change in changes if change.picture is not None]
    return tuple(f"picture of {c.shot.at_seconds:g} s: {n.removeprefix('image: ')}" for c, n in noted if n)


def opening_settings(job: RenderJob) -> dict[str, Any]:
    """What the stream opens with; the strength of its first shot is a setting."""
    strength = job.shots[0].strength
    return dict(job.set) | ({} if strength is None else {"strength": strength})


def check_live(pipeline: Pipeline, settings: StreamSettings, job: RenderJob) -> None:
    """Raise InputError for strengths and pictures that the model cannot do."""
    strengths = [shot.strength for shot in job.shots if shot.strength is not None]
    for strength in strengths or ([settings.strength] if job.input is not None else []):
        settings.updated({"strength": strength}).check_strength(pipeline.settings)
    for index, shot in enumerate(job.shots):
        if shot.picture is None or shot.picture["use"] != "reference":
            continue
        if not settings.sink_frames or settings.recache_mode != "chunks":
            lacks = "a sink" if not settings.sink_frames else "recache_mode chunks"
            raise InputError(f"shots[{index}].picture: a reference needs {lacks}")


def check_releases(
    model: StreamModel, plan: ChunkPlan, changes: Sequence[Change], state: StreamState | None = None
) -> None:
    """Raise InputError where a gesture is let go of that is not in force at that chunk.

    Args:
        state: where the stream is; None at its beginning.
    """
    geometry = model.geometry
    gestures: tuple[Gesture, ...] = () if state is None else state.controls.gestures
    scene, earliest = (0, 0) if state is None else (state.latents.scene[1], state.next_frame(geometry))
    last, clears = 0, False
    for change in changes:
        wanted = geometry.latent_frames(max(change.frame, earliest))
        start = _chunk_start(plan, scene, wanted)
        if start > last and clears:
            # a scene of its own began: chunks count from there
            scene, clears = last, False
            start = _chunk_start(plan, scene, wanted)
        last, frame = start, geometry.frames(start)
        try:
            gestures = changed(released(gestures, frame), change.tracks, frame)
        except InputError as error:
            raise InputError(f"{change.place}.gestures: {error}") from None
        if change.shot.words or change.shot.cache is not None or change.shot.picture is not None:
            clears = change.shot.clears


def _chunk_start(plan: ChunkPlan, scene: int, latent_frame: int) -> int:
    """The first latent frame of the first chunk that does not begin before one, in a scene that begins at
    latent frame `scene`.
    """
    offset = latent_frame - scene
    if offset <= 0:
        return scene
    return scene + plan.start(1 + max(0, -(-(offset - plan.first_chunk_frames) // plan.chunk_frames)))


def reach_notes(changes: Sequence[Change], end: int, fps: float, slack: int = 0) -> tuple[str, ...]:
    """What of the motions lies behind the clip's end; of one that a later one replaces, nothing."""
    notes: list[str] = []
    replaced: set[str] = set()
    for change in reversed([change for change in changes if change.frame < end]):
        for name, tracks in reversed(change.tracks.items()):
            if tracks is None or tracks.is_empty or name in replaced:
                continue
            late = beyond(tracks, change.frame, end, fps, slack if change.frame else 0)
            if late is not None:
                what = "motion" if name == MOTION else f"gesture {shorten(name)}"
                notes.append(f"{what} of {change.shot.at_seconds:g} s: {late}")
        replaced |= set(change.tracks)
        if change.motion is not None and change.motion.is_empty:
            # plain motion without points lets go of all that began before
            break
    return tuple(reversed(notes))


def _frame_of(seconds: float, fps: float) -> int:
    """The first frame that is not shown before `seconds`."""
    return math.ceil(seconds * fps - 1e-6)
