"""The page: a Gradio app around one `gr.HTML` component that holds everything live.

Its markup, styles and scripts are plain files in `static/`; the scripts are ES modules that the browser loads
from this server.
"""

import html
import json
from pathlib import Path
from typing import Any

import gradio as gr

from .engine import ModelInfo

STATIC = Path(__file__).parent / "static"
# Gradio's own upload route is not used; this keeps it from taking anything.
_GRADIO_UPLOAD = "1kb"
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_LOAD = """
const root = element.querySelector("[data-root]");
const base = new URL(root.dataset.root || document.baseURI, document.baseURI);
base.search = ""; base.hash = "";
if (!base.pathname.endsWith("/")) base.pathname += "/";
import(new URL("live/static/main.js", base).href).then((main) => main.mount(root, base));
"""

# Said before anything else is loaded: a page that is loaded again keeps its place.
_HEAD = """<script>
{
  const id = sessionStorage.getItem("streamgen-session"), root = @ROOT@;
  const base = new URL(root || ".", location.href);
  if (id) fetch(new URL(`live/${id}/back`, base), { method: "POST" }).catch(() => {});
}
</script>"""


def build_page(info: ModelInfo, root_path: str = "") -> gr.Blocks:
    """The Gradio app."""
    options = json.dumps({"examples": list(info.examples), "settings": dict(info.settings)})
    stage = (STATIC / "stage.html").read_text(encoding="utf-8")
    stage = stage.replace("@ROOT@", html.escape(_root(root_path), quote=True))
    stage = stage.replace("@OPTIONS@", html.escape(options, quote=True))
    stage = stage.replace("@RATIO@", f"{info.width} / {info.height}")
    with gr.Blocks(title="streamgen live", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(stage, js_on_load=_LOAD, apply_default_css=False, elem_id="live")
        with gr.Accordion(f"Model card: {info.name}", open=False, elem_id="card"):
            gr.Markdown(info.card)
    return page


def page_options(root_path: str) -> dict[str, Any]:
    """Arguments for `gr.mount_gradio_app`."""
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="zinc", font=list(_FONTS), font_mono=list(_MONO))
    return {
        "css": (STATIC / "style.css").read_text(encoding="utf-8"),
        "head": _HEAD.replace("@ROOT@", json.dumps(_root(root_path)).replace("<", "\\u003c")),
        "theme": theme,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "show_error": False,
        "mcp_server": False,
        "pwa": False,
        "max_file_size": _GRADIO_UPLOAD,
        "root_path": root_path or None,
    }


def _root(root_path: str) -> str:
    return root_path.rstrip("/") + "/" if root_path else ""
