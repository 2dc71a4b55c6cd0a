"""`python -m demo`: the live demo on this machine."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamgen.cli.arguments import WAN, Device, Model, Quantize, with_options

from .access import Access
from .arguments import DrainSeconds, FleetName, Shelf, WorkerCpus, WorkerGpus, WorkerMemory, Workers
from .arguments import Engine as Where

if TYPE_CHECKING:
    from .engine import Engine
    from .server import Options

# What loads within this is there before the first page, and what cannot be is said before anything is served.
_AT_ONCE_SECONDS = 3.0


@with_options(WAN)
def main(  # noqa: PLR0913 - a command has as many parameters as it has options
    *,
    model: Model = "tiny",
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model.")] = None,
    runner: Annotated[
        str | None,
        typer.Option(
            help="What computes chunks: auto (the fastest here), plain, onnx, compile, graph, ahead."
        ),
    ] = None,
    quantize: Quantize = None,
    deadline: Annotated[
        float | None, typer.Option(help="Milliseconds that a chunk may take: as many steps as fit.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    auth: Annotated[str | None, typer.Option(help="user:password, asked for by the browser.")] = None,
    max_sessions: Annotated[int, typer.Option(min=1, help="Streams at a time; others wait.")] = 2,
    max_waiting: Annotated[int, typer.Option(min=0, help="Viewers in the row.")] = 64,
    max_watchers: Annotated[int, typer.Option(min=0, help="Who only watch, of all streams together.")] = 200,
    idle_minutes: Annotated[float, typer.Option(min=0, help="Ends idle sessions; 0: never.")] = 10.0,
    root_path: Annotated[str, typer.Option(help="Path under which a reverse proxy serves this.")] = "",
    origin: Annotated[
        list[str] | None, typer.Option(help="Further origin of the page, such as https://example.org.")
    ] = None,
    record_mb: Annotated[int, typer.Option(min=1, help="Disk space of one session's recording.")] = 512,
    rewind_mb: Annotated[int, typer.Option(min=0, help="Memory for moments to go back to.")] = 96,
    engine: Where = "local",
    workers: Workers = None,
    worker_gpus: WorkerGpus = None,
    worker_cpus: WorkerCpus = 1.0,
    worker_memory_gb: WorkerMemory = 0.0,
    fleet: FleetName = "streamgen",
    shelf: Shelf = None,
    drain_seconds: DrainSeconds = 0.0,
    **more: Any,
) -> None:
    """Stream a model to the browser and steer it while it plays."""
    given = dict(locals())
    given |= given.pop("more")
    from streamgen.errors import StreamgenError

    if auth is not None and not all(auth.partition(":")[::2]):
        raise typer.BadParameter("expected user:password", param_hint="--auth")
    access = Access(_is_loopback(host), tuple(o.rstrip("/") for o in origin or ()), auth)
    try:
        _serve_where(given, access)
    except StreamgenError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        print(f"error: {host}:{port}: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _serve_where(given: Mapping[str, Any], access: Access) -> None:
    """Serve from this process, or from workers on a cluster."""
    from .limits import Limits
    from .lobby import Rules

    idle, shelf = 60 * given["idle_minutes"], given["shelf"] or _shelf()
    rules = Rules(given["max_sessions"], given["max_waiting"], idle_seconds=idle)
    limits = Limits(given["rewind_mb"] * 2**20, given["record_mb"] * 2**20)
    if given["engine"] == "ray":
        from .cluster.front import FrontOptions
        from .cluster.start import order_of, serve_cluster

        order = order_of(given, rules, limits, shelf.absolute())
        serve_cluster(given, order, FrontOptions(access, given["root_path"]))
        return
    from .engine_of import late_engine
    from .server import Options

    engine = late_engine(given)
    engine.start()
    engine.wait(_AT_ONCE_SECONDS)
    if engine.failure is not None:
        raise engine.failure
    options = Options(rules, limits, access, given["root_path"], shelf, given["max_watchers"])
    serve(engine, options, given["host"], given["port"], given["drain_seconds"])


def serve(engine: "Engine", options: "Options", host: str, port: int, drain_seconds: float = 0.0) -> None:
    """Serve until Ctrl-C, until drained, or until the model could not be loaded.

    Raises:
        StreamgenError: why not.
    """
    from dataclasses import replace

    import uvicorn

    from .app import app_of
    from .drain import DrainingServer
    from .server import SERVER_OPTIONS, Demo

    def stop() -> None:
        server.should_exit = True

    demo = Demo(engine, replace(options, on_failure=stop, on_drained=stop))
    config = uvicorn.Config(app_of(demo), host=host, port=port, log_level="warning", **SERVER_OPTIONS)
    server = DrainingServer(config, demo.drain.begin, drain_seconds)
    shown = "localhost" if _is_loopback(host) or host in ("0.0.0.0", "::") else host
    print(f"streamgen live: http://{shown}:{port}{options.root_path}/  (Ctrl-C ends it)", file=sys.stderr)
    server.run()
    if engine.failure is not None:
        raise engine.failure


def _shelf() -> Path:
    """Where this user's streams outlive the server for an hour."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return Path(tempfile.gettempdir()) / f"streamgen-demo-{user}"


def _is_loopback(host: str) -> bool:
    return host in ("127.0.0.1", "localhost", "::1")


if __name__ == "__main__":
    typer.run(main)
