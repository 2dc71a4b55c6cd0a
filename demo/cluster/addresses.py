"""Ids of sessions with the name of the worker that has them."""

_MARK = "."


def signed(token: str, worker: str) -> str:
    """A worker's id, as pages know it."""
    return f"{token}{_MARK}{worker}"


def parted(token: str) -> tuple[str, str]:
    """The worker's own id, and its name; "" where the id names none."""
    own, _, worker = token.partition(_MARK)
    return own, worker


def routed(path: str) -> tuple[str, str]:
    """A path as the worker knows it, and the name of the worker that an id in it names; "" without any.

    >>> routed("live/abc.1/clip.mp4")
    ('live/abc/clip.mp4', '1')
    """
    parts = path.split("/")
    # the last part may be the name of a file
    ids = [i for i, part in enumerate(parts) if _MARK in part and not _is_file(parts, i)]
    if not ids:
        return path, ""
    parts[ids[0]], worker = parted(parts[ids[0]])
    return "/".join(parts), worker


def _is_file(parts: list[str], place: int) -> bool:
    """Whether a part is the name of a download: `live/ID/clip.mp4`."""
    return place == len(parts) - 1 and place >= 2 and parts[1] != "ws"
