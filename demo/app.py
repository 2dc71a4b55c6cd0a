"""The web application: what `server` does, under its addresses, and the page."""

from fastapi import FastAPI

from .access import Access, Gate
from .engine import Engine, ModelInfo
from .server import Demo, Options


def live_app(demo: Demo) -> FastAPI:
    """What sessions need of the web: no page, and nobody who looks at who comes in."""
    app = FastAPI(lifespan=demo.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", demo.status, methods=["GET"])
    app.add_api_route("/metrics", demo.figures, methods=["GET"])
    app.add_api_route("/live/session", demo.ticket, methods=["POST"])
    app.add_api_route("/live/health", demo.health, methods=["GET"])
    app.add_api_route("/live/{token}/back", demo.back, methods=["POST"])
    app.add_api_route("/live/{token}/picture", demo.picture, methods=["POST"])
    app.add_api_route("/live/{token}/clip.{suffix}", demo.clip, methods=["GET"])
    app.add_api_route("/live/{token}/timeline.json", demo.timeline, methods=["GET"])
    demo.editing.add_routes(app)
    app.add_api_route("/live/{token}/watch", demo.watch_link, methods=["POST"])
    app.add_api_route("/live/{token}/watch", demo.no_watch_link, methods=["DELETE"])
    app.add_api_websocket_route("/live/ws/watch/{key}", demo.watch)
    app.add_api_websocket_route("/live/ws/{token}", demo.socket)
    app.state.demo = demo
    return app


def with_page(app: FastAPI, info: ModelInfo, root_path: str, access: Access) -> Gate:
    """The page before the routes that it speaks to, behind the rules of admission."""
    # seconds of loading that a worker without a page has no use for
    import gradio as gr

    from . import assets
    from .page import Head, build_page, page_options

    app.mount("/live/static", assets.served())
    page = build_page(info, root_path)
    app = gr.mount_gradio_app(app, page, path="/", **page_options(root_path))
    return Gate(Head(app, root_path), access)


def app_of(demo: Demo) -> Gate:
    """The whole application, to be served by uvicorn with one process."""
    return with_page(live_app(demo), demo.engine.info, demo.options.root_path, demo.options.access)


def build_app(engine: Engine, options: Options | None = None) -> Gate:
    """The whole application around an engine."""
    return app_of(Demo(engine, options or Options()))
