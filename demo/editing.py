"""The routes by which a page opens a timeline, looks at its blocks and edits them."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from streamgen.errors import InputError, StreamgenError

from . import opening
from .conducted import Conducted
from .engine import Engine
from .messages import MAX_MESSAGE_BYTES, SETTINGS, TEXT_SETTINGS, BadMessage, Box, Camera, Path, parse
from .score import Edit

MAX_EDITS = 200
_KEYS = {
    "block": str,
    "copy": str,
    "frame": int,
    "frames": int,
    "prompt": str,
    "settings": dict,
    "motion": dict,
    "delete": bool,
}


class Editing:
    """Opens and edits the streams of sessions.

    Args:
        find: the session of an id.
        heard: its viewer has done something.
    """

    def __init__(
        self, engine: Engine, find: Callable[[str], Conducted | None], heard: Callable[[str], None]
    ) -> None:
        self.engine, self.find, self.heard = engine, find, heard

    def add_routes(self, app: FastAPI) -> None:
        """Serve what this has."""
        app.add_api_route("/live/{token}/open", self.open, methods=["POST"])
        app.add_api_route("/live/{token}/lane", self.lane, methods=["GET"])
        app.add_api_route("/live/{token}/lane", self.edit, methods=["POST"])

    async def open(self, token: str, request: Request) -> Response:
        """Play a timeline: its opening begins a stream, and the rest waits for its frames."""
        session = self.find(token)
        if session is None:
            return _no_session()
        self.heard(token)
        try:
            data = await _body(request, opening.MAX_BYTES)
            score = await asyncio.to_thread(opening.read_score, data, self.engine.info)
            session.play(score)
        except (StreamgenError, BadMessage) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"notes": score.notes, "frames": score.frames, "changes": len(score.later)})

    async def lane(self, token: str) -> Response:
        """The blocks of a stream as it is."""
        session = self.find(token)
        return _no_session() if session is None else JSONResponse(await asyncio.to_thread(session.lane))

    async def edit(self, token: str, request: Request) -> Response:
        """Change blocks; the stream plays again from the first frame that is different."""
        session = self.find(token)
        if session is None:
            return _no_session()
        self.heard(token)
        try:
            row = json.loads(await _body(request, MAX_MESSAGE_BYTES))
            epoch, edits = parsed(row)
            await asyncio.to_thread(session.edit, epoch, edits)
        except (ValueError, RecursionError):
            return JSONResponse({"error": "edit: expected a JSON object"}, 400)
        except (StreamgenError, BadMessage) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"edits": len(edits)})


def parsed(row: Any) -> tuple[int, list[Edit]]:
    """The epoch and edits of a message.

    Raises:
        InputError: another form, or values out of range.
    """
    edits = row.get("edits") if isinstance(row, dict) else None
    if not isinstance(edits, list) or not 1 <= len(edits) <= MAX_EDITS or type(row.get("epoch")) is not int:
        raise InputError(f"edit: expected an epoch and a list of 1 to {MAX_EDITS} edits")
    return row["epoch"], [_edit(one) for one in edits]


def _edit(row: Any) -> Edit:
    if not isinstance(row, dict):
        raise InputError(f"edit: expected an object, found {str(row)[:40]!r}")
    for name, value in row.items():
        if name not in _KEYS:
            raise InputError(f"edit: unknown field {name[:40]!r}")
        if type(value) is not _KEYS[name]:
            raise InputError(f"edit: {name}: expected {_KEYS[name].__name__}, found {str(value)[:40]!r}")
    if row.get("frames", 0) < 0:
        raise InputError(f"edit: frames: expected 0 or more, found {row['frames']}")
    for name, value in row.get("settings", {}).items():
        _check_setting(name, value)
    if "motion" in row:
        return Edit(**row | {"motion": _motion(row["motion"])})
    return Edit(**row)


def _motion(row: dict[str, Any]) -> Path | Box | Camera:
    """A path, box or camera move as the page would send it, without the picture that it was drawn on."""
    kind = row.get("type")
    if kind not in ("path", "box", "camera"):
        raise InputError(f"edit: motion: expected a path, box or camera, found {str(kind)[:40]!r}")
    drawn_on = {} if kind == "camera" else {"id": 0, "epoch": 0, "frame": 0}
    try:
        made = parse(json.dumps(row | drawn_on))
    except BadMessage as error:
        raise InputError(f"edit: {error}") from None
    assert isinstance(made, Path | Box | Camera)
    return made


def _check_setting(name: str, value: Any) -> None:
    if name in TEXT_SETTINGS:
        if not isinstance(value, str) or len(value) > TEXT_SETTINGS[name]:
            raise InputError(f"edit: {name}: expected text of up to {TEXT_SETTINGS[name]} characters")
        return
    if name not in SETTINGS:
        known = ", ".join((*SETTINGS, *TEXT_SETTINGS))
        raise InputError(f"edit: settings: expected {known}, found {name[:40]!r}")
    kind, least, most = SETTINGS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most or (kind is int and type(value) is not int):
        raise InputError(f"edit: {name}: expected {least:g} to {most:g}, found {str(value)[:40]!r}")


async def _body(request: Request, most: int) -> bytes:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise InputError(f"expected at most {most // 1024} KiB, found more")
    return data


def _no_session() -> Response:
    return JSONResponse({"error": "no such session"}, 404)
