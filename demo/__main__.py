"""`python -m demo`: the live demo on this machine."""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .access import Access

if TYPE_CHECKING:
    from .engine import Engine
    from .server import Options


def main(  # noqa: PLR0913 - a command has as many parameters as it has options
    *,
    model: Annotated[str, typer.Option(help="A model's name or a checkpoint directory.")] = "tiny",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model.")] = None,
    runner: Annotated[
        str | None,
        typer.Option(help="What computes chunks: auto (the fastest here), plain, onnx or compile."),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Milliseconds that a chunk may take: as many steps as fit.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    auth: Annotated[str | None, typer.Option(help="user:password, asked for by the browser.")] = None,
    max_sessions: Annotated[int, typer.Option(min=1, help="Streams at a time; others wait.")] = 2,
    max_waiting: Annotated[int, typer.Option(min=0, help="Viewers in the row.")] = 64,
    idle_minutes: Annotated[float, typer.Option(min=0, help="Ends idle sessions; 0: never.")] = 10.0,
    root_path: Annotated[str, typer.Option(help="Path under which a reverse proxy serves this.")] = "",
    origin: Annotated[
        list[str] | None, typer.Option(help="Further origin of the page, such as https://example.org.")
    ] = None,
    record_mb: Annotated[int, typer.Option(min=1, help="Disk space of one session's recording.")] = 512,
) -> None:
    """Stream a model to the browser and steer it while it plays."""
    from streamgen.errors import StreamgenError

    if auth is not None and not all(auth.partition(":")[::2]):
        raise typer.BadParameter("expected user:password", param_hint="--auth")
    access = Access(_is_loopback(host), tuple(o.rstrip("/") for o in origin or ()), auth)
    try:
        from streamgen import load_pipeline
        from streamgen.engine.budget import StepBudget

        from .engine import PipelineEngine
        from .limits import Limits
        from .lobby import Rules
        from .server import Options

        if deadline is not None:
            StepBudget.of(deadline)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        print(f"loading {model} ...", file=sys.stderr)
        pipeline = load_pipeline(model, device, runner=runner)
        if threads is None:
            pipeline.settle_threads()
        note = pipeline.choose().note
        if note is not None:
            print(f"note: {note}", file=sys.stderr)
        engine = PipelineEngine(pipeline, deadline)
        rules = Rules(max_sessions=max_sessions, max_waiting=max_waiting, idle_seconds=60 * idle_minutes)
        options = Options(rules, Limits(recording_bytes=record_mb * 2**20), access, root_path, _shelf())
        serve(engine, options, host, port)
    except StreamgenError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        print(f"error: {host}:{port}: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(2) from None


def serve(engine: "Engine", options: "Options", host: str, port: int) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    from .server import SERVER_OPTIONS, build_app, warm_up

    app = build_app(engine, options)
    warm_up(engine)
    shown = "localhost" if _is_loopback(host) or host in ("0.0.0.0", "::") else host
    print(f"streamgen live: http://{shown}:{port}{options.root_path}/  (Ctrl-C ends it)", file=sys.stderr)
    uvicorn.run(app, host=host, port=port, log_level="warning", **SERVER_OPTIONS)


def _shelf() -> Path:
    """Where this user's streams outlive the server for an hour."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return Path(tempfile.gettempdir()) / f"streamgen-demo-{user}"


def _is_loopback(host: str) -> bool:
    return host in ("127.0.0.1", "localhost", "::1")


if __name__ == "__main__":
    typer.run(main)
