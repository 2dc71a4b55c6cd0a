"""The page: a Gradio app around one `gr.HTML` component that holds everything live.

Its markup, styles and scripts are plain files in `static/`; the scripts are ES modules that the browser loads
from this server.
"""

import html
import json
import re
from typing import Any

import gradio as gr

from streamgen.stream.prompts import MAX_PROMPT

from . import assets
from .access import App, Receive, Scope, Send
from .assets import STATIC
from .engine import ModelInfo

# Gradio's own upload route is not used; this keeps it from taking anything.
_GRADIO_UPLOAD = "1kb"
_TITLE, _ABOUT = "streamgen live", "Endless video from your words, steered while it plays."
_META = f"""
		<title>{_TITLE}</title>
		<meta name="description" content="{_ABOUT}" />
		<meta property="og:title" content="{_TITLE}" />
		<meta property="og:type" content="website" />
		<meta property="og:description" content="{_ABOUT}" />"""
_TEMPLATE_META = re.compile(
    r"<title>[^<]*</title>|<meta\s+(?:property|name)=\"(?:og:|twitter:|description)[^>]*>"
)
# A link to a file: anything but a full address or a place on the same page.
_FILE_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?://|#)[^)]*\)")
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_LOAD = """
const root = element.querySelector("[data-root]");
const base = new URL(root.dataset.root || document.baseURI, document.baseURI);
base.search = ""; base.hash = "";
if (!base.pathname.endsWith("/")) base.pathname += "/";
import(new URL("live/static/main.js", base).href).then((main) => main.mount(root, base));
"""

# Before anything else is loaded: a page that is loaded again keeps its place, a theme that was chosen is
# there from the first picture on, and a click on Start that comes before the page is ready counts.
_HEAD = """<script>
{
  addEventListener("click", (event) => {
    if (event.target.closest?.("[data-do=start]")) window.streamgenEarly = true;
  }, true);
  const theme = localStorage.getItem("streamgen-theme");
  const paint = () => document.body.classList.toggle("dark", theme === "dark");
  if (theme) addEventListener("DOMContentLoaded", paint);
  const id = sessionStorage.getItem("streamgen-session"), root = @ROOT@;
  const base = new URL(root || ".", location.href);
  if (id) fetch(new URL(`live/${id}/back`, base), { method: "POST" }).catch(() => {});
}
</script>"""


def build_page(info: ModelInfo, root_path: str = "") -> gr.Blocks:
    """The Gradio app."""
    told = {"examples": list(info.examples), "settings": dict(info.settings), "limit": MAX_PROMPT}
    told |= {"words": list(info.words), "kinds": dict(info.kinds), "draws": info.draws}
    options = json.dumps(told)
    stage = assets.stage().replace("@ROOT@", html.escape(_root(root_path), quote=True))
    stage = stage.replace("@OPTIONS@", html.escape(options, quote=True))
    stage = stage.replace("@RATIO@", f"{info.width} / {info.height}")
    with gr.Blocks(title=_TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(stage, js_on_load=_LOAD, apply_default_css=False, elem_id="live")
        with gr.Accordion(f"Model card: {info.name}", open=False, elem_id="card"):
            gr.Markdown(readable_card(info.card))
    return page


def page_options(root_path: str) -> dict[str, Any]:
    """Arguments for `gr.mount_gradio_app`."""
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="zinc", font=list(_FONTS), font_mono=list(_MONO))
    return {
        "css": assets.styles(),
        "head": _HEAD.replace("@ROOT@", _script_text(_root(root_path))),
        "theme": theme,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "show_error": False,
        "favicon_path": str(STATIC / "icon.svg"),
        "mcp_server": False,
        "pwa": False,
        "max_file_size": _GRADIO_UPLOAD,
        "root_path": root_path or None,
    }


def readable_card(card: str) -> str:
    """A model card without links to files beside it, which the page does not serve; their words stay."""
    return _FILE_LINK.sub(r"\1", card)


class Head:
    """Puts this page's title, description and address where Gradio's template has its own.

    Args:
        app: what it stands before.
        root_path: under which all addresses lie.
    """

    def __init__(self, app: App, root_path: str = "") -> None:
        self.app, self.preloads = app, _preloads(_root(root_path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; rewrite the head of the page."""
        if scope["type"] != "http" or scope["path"].rstrip("/") != scope.get("root_path", "").rstrip("/"):
            await self.app(scope, receive, send)
            return
        held: list[Any] = []
        body = b""

        async def collect(message: Any) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                held.append(message)
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            start = held.pop()
            headers = dict(start["headers"])
            if headers.get(b"content-type", b"").startswith(b"text/html"):
                page = own_head(body.decode("utf-8"))
                body = page.replace("</title>", f"</title>{self.preloads}", 1).encode("utf-8")
                headers[b"content-length"] = str(len(body)).encode()
            await send({**start, "headers": list(headers.items())})
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, collect)


def own_head(page: str) -> str:
    """The page with its own metadata in place of the template's."""
    page = _TEMPLATE_META.sub("", page)
    return page.replace("<head>", f"<head>{_META}", 1)


def _preloads(root: str) -> str:
    """All scripts are fetched while Gradio starts, and not one after the other once it has."""
    address = html.escape(root, quote=True)
    return "".join(
        f'<link rel="modulepreload" href="{address}live/static/{name}">' for name in assets.scripts()
    )


def _script_text(text: str) -> str:
    return json.dumps(text).replace("<", "\\u003c")


def _root(root_path: str) -> str:
    return root_path.rstrip("/") + "/" if root_path else ""
