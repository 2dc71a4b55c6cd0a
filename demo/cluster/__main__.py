"""`python -m demo.cluster`: look after the workers of a fleet, on the cluster that RAY_ADDRESS names."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from streamgen.errors import InputError, StreamgenError

from ..arguments import FleetName

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
_ANSWER_SECONDS = 5.0


@app.command()
def status(fleet: FleetName = "streamgen") -> None:
    """One line for each worker."""
    with _told():
        crew = _fleet(fleet)
        for name in crew.names():
            about = crew.about(name, _ANSWER_SECONDS)
            load = None if about is None else _ask(about, "GET", "/worker")
            print(f"{name}\t{_line(about, load)}")


@app.command()
def renew(
    fleet: FleetName = "streamgen",
    worker: Annotated[
        list[str] | None, typer.Option(help="These alone; default: one after the other.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="That viewers may stay before they are moved.")] = 0.0,
    patience: Annotated[float, typer.Option(min=1, help="Seconds for a worker to come back.")] = 600.0,
) -> None:
    """Send a worker's viewers to the others, end its process and have Ray start it again, as after a change
    of the code. Streams go on exactly where they were.
    """
    with _told():
        crew = _fleet(fleet)
        names = crew.names()
        unknown = set(worker or ()) - set(names)
        if unknown:
            raise InputError(f"--worker {min(unknown)}: no such worker, expected one of {', '.join(names)}")
        for name in worker or names:
            _renew(crew, name, seconds, patience)
            print(f"{name}\trenewed")


@app.command()
def stop(fleet: FleetName = "streamgen") -> None:
    """End all workers; streams are on the shelf for an hour."""
    with _told():
        crew = _fleet(fleet)
        for name in crew.names():
            about = crew.about(name, _ANSWER_SECONDS)
            if about is not None and about.address:
                _ask(about, "POST", "/worker/drain")
        _empty(crew, crew.names(), 30.0)
        crew.dismiss(crew.names())


def _renew(crew: Any, name: str, seconds: float, patience: float) -> None:
    before = crew.about(name, _ANSWER_SECONDS)
    if before is not None and before.address:
        _ask(before, "POST", f"/worker/drain?seconds={seconds}")
        _empty(crew, [name], seconds + 30.0)
    crew.restart(name)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        about = crew.about(name, _ANSWER_SECONDS)
        if about is not None and (before is None or about.key != before.key):
            if about.failure:
                raise InputError(f"worker {name}: {about.failure}")
            load = _ask(about, "GET", "/worker")
            if load is not None and load["failure"]:
                raise InputError(f"worker {name}: {load['failure']}")
            if load is not None and load["status"] == "ready":
                return
        time.sleep(0.5)
    raise InputError(f"worker {name}: not ready after {patience:.0f} s; see `ray status`")


def _empty(crew: Any, names: list[str], patience: float) -> None:
    """Wait until nobody is with these workers."""
    end = time.monotonic() + patience
    for name in names:
        about = crew.about(name, _ANSWER_SECONDS)
        while about is not None and about.address and time.monotonic() < end:
            load = _ask(about, "GET", "/worker")
            if load is None or not load["seats"]:
                break
            time.sleep(0.1)


def _ask(about: Any, method: str, path: str) -> dict[str, Any] | None:
    """Ask a worker something; None where it does not answer."""
    import httpx

    from .worker import KEY_HEADER

    try:
        with httpx.Client(trust_env=False, timeout=_ANSWER_SECONDS) as client:
            answer = client.request(method, f"http://{about.address}{path}", headers={KEY_HEADER: about.key})
            row: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    return row


def _line(about: Any, load: dict[str, Any] | None) -> str:
    if about is None:
        return "gone"
    if about.failure:
        return f"failed\t{about.failure}"
    if load is None:
        return f"gone\t{about.address}"
    return f"{load['status']}\t{load['seats']} of {load['places']} places\t{about.address}\t{load['failure']}"


def _fleet(name: str) -> Any:
    from .fleet import Fleet

    if "RAY_ADDRESS" not in os.environ:
        raise InputError("RAY_ADDRESS: not set, expected the address of the cluster (auto: this machine's)")
    fleet = Fleet(name)
    if not fleet.names():
        raise InputError(f"--fleet {name}: there are no workers of this name")
    return fleet


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tells an error in one line, exit code 2."""
    try:
        yield
    except StreamgenError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
