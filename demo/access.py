"""Who may come in: host names, origins of other sites' pages, and a password.

A page of another site that is open in the same browser could talk to a server on 127.0.0.1, directly or under
a name of its own that resolves there (DNS rebinding); browsers say which site a page is of, and that is
checked here.
"""

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Connections are let in by their session id, which only who has passed the password can get; some browsers
# send no password with a WebSocket.
_SOCKETS = "/live/ws/"
# Says nothing but whether the server is ready; what asks seldom has a password.
_HEALTH = "/health"


@dataclass(frozen=True)
class Access:
    """Rules of admission.

    Attributes:
        local: bound to this machine alone, so that only its own names are answered.
        origins: further origins (`https://example.org`) under which the page is served, as by a proxy.
        login: "user:password", or None.
    """

    local: bool = True
    origins: tuple[str, ...] = ()
    login: str | None = None

    def host_allowed(self, host: str) -> bool:
        """Whether a request for this `Host` is answered."""
        name, known = _name(f"//{host}"), {_name(origin) for origin in self.origins}
        return not self.local or name in _LOOPBACK or name in known

    def origin_allowed(self, origin: str | None, host: str) -> bool:
        """Whether a page of this origin may act; programs that are no browsers send none."""
        if origin is None or origin.rstrip("/") in self.origins:
            return True
        return origin.partition("://")[2].lower() == host.lower() != ""

    def login_allowed(self, header: str | None) -> bool:
        """Whether an `Authorization` header has the password."""
        if self.login is None:
            return True
        kind, _, code = (header or "").partition(" ")
        try:
            given = base64.b64decode(code, validate=True)
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given, self.login.encode())


def _name(url: str) -> str:
    """The host name of an address; empty for what is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class Gate:
    """Refuses what the rules do not allow, before the application sees it."""

    def __init__(self, app: App, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        acts = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        by_ticket = scope["type"] == "websocket" and _SOCKETS in scope["path"]
        free = by_ticket or scope["path"] == scope.get("root_path", "") + _HEALTH
        if not self.access.host_allowed(host):
            await _refuse(scope, send, 403, "this server does not go by that name; see --origin")
        elif acts and not self.access.origin_allowed(origin, host):
            await _refuse(scope, send, 403, "pages of other sites may not use this server; see --origin")
        elif not free and not self.access.login_allowed(headers.get("authorization")):
            await _refuse(scope, send, 401, "a user name and a password are needed")
        else:
            await self.app(scope, receive, send)


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="streamgen", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
