"""Tracks of own clips: read from a file or found in the clip, then cut to pieces as the windows want them."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import torch

from streamgen.errors import InputError
from streamgen.motion.file import load_motion
from streamgen.motion.from_clip import ClipMotion, tracks_of_clip
from streamgen.motion.sources import files_of
from streamgen.motion.tracks import UNSPECIFIED, VISIBLE, TrackSet

from .folder import ClipFolder, UsableClip, ahead
from .listing import ClipEntry, Problem
from .store import Tensors, fingerprint

# A point that stays within this share of the frame, over all frames it is known in, stands still.
_STILL = 0.02
# Where a clip has no track: outside of the picture.
_NOWHERE = -1.0
# Tracks that are looked for, for each that is kept: some are lost at once, some stand still.
_SPARE = 4
# The tracker takes two minutes at most.
_TRACKER_SECONDS = 120.0


class ClipTracks:
    """The tracks of a folder's clips, kept on disk."""

    def __init__(self, folder: ClipFolder) -> None:
        config = folder.config
        if config.tracks == "auto" and importlib.util.find_spec("cv2") is None:
            raise InputError(
                'clips.tracks auto: OpenCV is missing, expected `pip install "streamgen[track]"`'
            )
        self.folder, self.config = folder, config
        self._shelf = folder.shelf("tracks")

    def build(self, rank: int, world: int) -> None:
        """Make this process' share of what is missing."""
        mine: dict[str, ClipEntry] = {}
        for entry in self.folder.listing.entries[rank::world]:
            self.folder.index.digest(entry.video)
            for file in files_of(str(entry.tracks)) if self._from_file(entry) else ():
                self.folder.index.digest(file)
            key = self._key(entry)
            if key is not None and not self._shelf.settled(key, self.config.retry):
                mine.setdefault(key, entry)
        found = ahead(lambda item: self._find(item[1]), mine.items(), self.config.readers)
        for (key, _), tracks in found:
            self._shelf.make(key, tracks)

    def problems(self) -> list[Problem]:
        """Track files that cannot be used; their clips are used without them."""
        self.folder.index.refresh()
        problems = []
        for entry in self.folder.listing.entries:
            if self._from_file(entry):
                key = self._key(entry)
                why = self.folder.index.why_not(Path(str(entry.tracks))) or (
                    self._shelf.failure(key) if key else None
                )
                if why is not None:
                    why = f"{why}; the clip is used without tracks"
                    problems.append(Problem(str(entry.tracks), why, entry.where))
        return problems

    def load(self, clip: UsableClip, starts: Iterable[int]) -> Tensors:
        """Tracks of the pieces of a clip that begin at frames `starts`: `piece_tracks`, stacked."""
        key = self._key(clip.entry)
        tracks = TrackSet.empty(0)
        if key is not None and self._shelf.has(key):
            stored = self._shelf.load(key)
            tracks = TrackSet.from_points(stored["points"], stored["state"], stored["pinned"])
        frames, count = self.config.frames, self.config.points
        pieces = [piece_tracks(tracks.slice(start, start + frames), count) for start in starts]
        return {name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]}

    def _from_file(self, entry: ClipEntry) -> bool:
        return entry.tracks is not None and self.config.tracks != "none"

    def _key(self, entry: ClipEntry) -> str | None:
        """Named after all that the tracks depend on; None where there are none to be had."""
        index = self.folder.index
        if self._from_file(entry):
            digests = [index.known(file) for file in files_of(str(entry.tracks))]
            return fingerprint("file", digests) if None not in digests else None
        video = index.known(entry.video)
        if self.config.tracks == "auto" and video is not None:
            return fingerprint("auto", video, self.config.points)
        return None

    def _find(self, entry: ClipEntry) -> Tensors:
        config, aspect = self.config, self.folder.aspect
        if self._from_file(entry):
            try:
                tracks = load_motion(str(entry.tracks), config.fps, config.max_frames, aspect)
            except InputError as error:
                raise InputError(str(error).removeprefix(f"{entry.tracks}: ")) from None
        else:
            seconds = min(config.max_seconds, _TRACKER_SECONDS)
            wanted = ClipMotion(seconds, min(_SPARE * config.points, 1024))
            tracks = tracks_of_clip(entry.video, config.fps, aspect, wanted)
        return {"points": tracks.points, "state": tracks.state, "pinned": tracks.pinned}


def piece_tracks(tracks: TrackSet, count: int) -> Tensors:
    """The `count` most useful tracks over the frames of one piece, as `LatentClips` holds them.

    Tracks that move come first and count as objects, at least a quarter of the places is kept for others;
    among equals those known in most frames come first. Tracks that stand still count as background, pinned.

    Returns:
        `points` float16 `(count, F, 2)`, outside [0, 1] where unspecified; `visible` bool `(count, F)`;
        `background` and, of those, `pinned` bool `(count,)`.
    """
    frames = tracks.num_frames
    known = tracks.state != UNSPECIFIED
    far = known[..., None].logical_not()
    low = tracks.points.masked_fill(far, 2.0).amin(1) if frames else tracks.points.new_zeros(0, 2)
    high = tracks.points.masked_fill(far, -2.0).amax(1) if frames else tracks.points.new_zeros(0, 2)
    length = known.sum(1)
    still = tracks.pinned | ((high - low).amax(-1) < _STILL)
    order = [int(i) for i in length.argsort(descending=True, stable=True) if length[i] > 1]
    moving = [i for i in order if not still[i]]
    resting = [i for i in order if still[i]]
    room = max(count - len(resting), count - count // 4)
    chosen = (moving[:room] + resting)[:count]
    points = torch.full((count, frames, 2), _NOWHERE)
    visible = torch.zeros(count, frames, dtype=torch.bool)
    background = torch.ones(count, dtype=torch.bool)
    pinned = torch.zeros(count, dtype=torch.bool)
    if chosen:
        rows = torch.tensor(chosen)
        points[: len(rows)] = torch.where(far[rows], _NOWHERE, tracks.points[rows])
        visible[: len(rows)] = tracks.state[rows] == VISIBLE
        background[: len(rows)] = pinned[: len(rows)] = still[rows]
    return {"points": points.half(), "visible": visible, "background": background, "pinned": pinned}
