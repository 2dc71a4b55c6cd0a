"""How far tracks reach: what of them a clip does not show."""

from .tracks import UNSPECIFIED, TrackSet


def beyond(tracks: TrackSet, start: int, end: int, fps: float, slack: int = 0) -> str | None:
    """What of some tracks lies behind a clip's end, as words that follow their name; None where nothing does.

    A move of N seconds has its last point at second N: one that ends with the clip goes on for nothing.

    Args:
        start: the frame where the tracks' frame 0 lies.
        end: the frame behind the clip's last one.
        slack: frames by which `start` may be later than it was asked for.
    """
    spoken = tracks.state != UNSPECIFIED
    frames = spoken.any(0).nonzero()
    if not len(frames):
        return None
    first, last = start + int(frames[0]), start + int(frames[-1])
    if first >= end:
        late = f"{_seconds(first - end, fps)} s behind" if first > end else "at"
        return f"begins {late} the clip's end: nothing of it shows"
    if last - slack <= end:
        return None
    # of several drags in one file some may lie behind the end as a whole
    unseen = int((~spoken[:, : end - start].any(1) & spoken.any(1)).sum())
    part = f" ({unseen} of its {tracks.num_tracks} tracks begin behind it)" if unseen else ""
    return f"goes on for {_seconds(last - end, fps)} s after the clip's end{part}"


def _seconds(frames: int, fps: float) -> str:
    return f"{round(frames / fps, 2):g}"
