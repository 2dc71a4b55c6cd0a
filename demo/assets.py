"""The page's own files as they are sent: without the comments and the white space of the sources.

No build, and nothing is renamed, so that an error in a browser names what was written.
"""

import hashlib
import mimetypes
import re
from pathlib import Path

import minify_html
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response

from .access import Receive, Scope, Send

STATIC = Path(__file__).parent / "static"
# Types for the checker, without a line that is run; the page's markup and styles come with Gradio's.
_NOT_SENT = ("types.js", "stage.html", "style.css")


def stage() -> str:
    """The markup, its places for what the server knows still empty."""
    text = (STATIC / "stage.html").read_text(encoding="utf-8")
    text = re.sub(r"\s*\n\s*", "\n", text)
    # beside these, white space is nothing
    return re.sub(
        r"\n(?=</?(?:div|section|details|summary|p|ul|ol|dl|option|select|fieldset|dialog|form)\b)", "", text
    )


def styles() -> str:
    """The styles."""
    return _inside("style", (STATIC / "style.css").read_text(encoding="utf-8"))


def scripts() -> list[str]:
    """The names of all scripts."""
    return sorted(file.name for file in STATIC.glob("*.js") if file.name not in _NOT_SENT)


def sent() -> dict[str, bytes]:
    """By name all files that the browser asks for."""
    made = {}
    for file in sorted(STATIC.iterdir()):
        if file.name in _NOT_SENT:
            continue
        data = file.read_bytes()
        made[file.name] = _script(data.decode("utf-8")).encode("utf-8") if file.suffix == ".js" else data
    return made


def _script(text: str) -> str:
    # types and remarks on lines of their own; the minifier would keep them
    text = re.sub(r"/\*\*.*?\*/", "", text, flags=re.DOTALL)
    return _inside('script type="module"', re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))


def _inside(tag: str, text: str) -> str:
    """What is left of a script or of styles, which the minifier takes as part of a page."""
    page = f"<{tag}>{text}</{tag.split(maxsplit=1)[0]}>"
    page = minify_html.minify(page, minify_js=True, minify_css=True, keep_closing_tags=True)
    return str(page[page.index(">") + 1 : page.rindex("</")])


class Assets:
    """Serves them; what a browser has already is not sent again."""

    def __init__(self) -> None:
        self.files = sent()
        self._marks = {
            name: f'"{hashlib.sha256(data).hexdigest()[:20]}"' for name, data in self.files.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One file by its name."""
        request = Request(scope)
        name = request.url.path.rsplit("/", maxsplit=1)[-1]
        if name not in self.files:
            raise HTTPException(404)
        if request.method not in ("GET", "HEAD"):
            raise HTTPException(405)
        headers = {"etag": self._marks[name], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == self._marks[name]:
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        await Response(self.files[name], media_type=kind, headers=headers)(scope, receive, send)


def served() -> GZipMiddleware:
    """The application for all of them, compressed where that is worth it."""
    return GZipMiddleware(Assets(), minimum_size=500)
