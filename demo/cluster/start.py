"""`python -m demo --engine ray`: the workers that are asked for, and a front before them."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamgen.errors import InputError

from ..limits import Limits
from ..lobby import Rules
from .fleet import Crew, Fleet, Share, count_of
from .front import Front, FrontOptions, front_app
from .worker import About, Order

if TYPE_CHECKING:
    from ..engine import Engine

# A worker on a new machine has to read its programs from disk first.
_PATIENCE_SECONDS = 300.0
_LOOK_SECONDS = 1.0
# What may differ between fronts of one fleet.
_OWN = (
    "host",
    "port",
    "auth",
    "root_path",
    "origin",
    "engine",
    "drain_seconds",
    "workers",
    "fleet",
    "command",
)


@dataclass(frozen=True)
class MakeEngine:
    """Makes the engine that the demo's options name, in a worker."""

    given: Mapping[str, Any]

    def __call__(self) -> "Engine":
        from ..engine_of import late_engine

        engine = late_engine(self.given)
        engine.start()
        return engine


def order_of(given: Mapping[str, Any], rules: Rules, limits: Limits, shelf: Path) -> Order:
    """What workers are to do, by the demo's options."""
    same = {name: value for name, value in given.items() if name not in _OWN}
    about = json.dumps(same, default=str, sort_keys=True)
    return Order(MakeEngine(dict(given)), rules, limits, shelf, Path.cwd(), about, given["max_watchers"])


def share_of(given: Mapping[str, Any], have: Mapping[str, float]) -> Share:
    """What is set aside for each worker."""
    gpus = given["worker_gpus"]
    if gpus is None:
        gpus = 1.0 if given["device"] != "cpu" and have.get("GPU", 0.0) >= 1 else 0.0
    return Share(given["worker_cpus"], gpus, round(given["worker_memory_gb"] * 2**30))


def serve_cluster(given: Mapping[str, Any], order: Order, options: FrontOptions) -> None:
    """Begin the workers that are not there yet and serve until Ctrl-C, until drained, or until no worker can
    load the model.

    Raises:
        StreamgenError: why not.
    """
    fleet = Fleet(given["fleet"])
    share = share_of(given, fleet.resources())
    fleet.start(count_of(given["workers"], share, fleet), share, order)
    about = first_of(fleet, order, _PATIENCE_SECONDS)
    serve_front(fleet, about, options, (given["host"], given["port"]), given["drain_seconds"])


def first_of(crew: Crew, order: Order, patience: float) -> About:
    """What the first worker that has anything says of itself.

    Raises:
        InputError: none has within `patience` seconds, none can, or they serve something else.
    """
    end, said = time.monotonic() + patience, False
    failures: dict[str, str] = {}
    while True:
        names = crew.names()
        for name in names:
            about = crew.about(name, _LOOK_SECONDS)
            if about is not None and about.about not in ("", order.about):
                raise InputError(_other(about.about, order.about))
            if about is not None and about.info is not None:
                return about
            if about is not None:
                failures[name] = about.failure
        if failures and set(failures) >= set(names):
            # they would only say the same to whoever tries again
            crew.dismiss(names)
            raise InputError(f"worker {min(failures)}: {failures[min(failures)]}")
        if time.monotonic() >= end:
            raise InputError(f"--engine ray: no worker has begun within {patience:.0f} s; see `ray status`")
        if not said:
            said = True
            print(f"waiting for {len(names)} workers ...", file=sys.stderr, flush=True)
        time.sleep(_LOOK_SECONDS / 4)


def serve_front(
    crew: Crew, about: About, options: FrontOptions, address: tuple[str, int], drain_seconds: float
) -> None:
    """Serve a front.

    Raises:
        InputError: no worker can load the model; they are dismissed.
    """
    from dataclasses import replace

    import uvicorn

    from ..drain import DrainingServer
    from ..server import SERVER_OPTIONS

    def stop() -> None:
        server.should_exit = True

    assert about.info is not None
    host, port = address
    front = Front(crew, replace(options, on_failure=stop, on_drained=stop))
    app = front_app(front, about.info)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", **SERVER_OPTIONS)
    server = DrainingServer(config, front.drain.begin, drain_seconds)
    count = len(crew.names())
    print(
        f"streamgen live: http://{host}:{port}{options.root_path}/  ({count} workers; Ctrl-C ends this front"
        f"{'' if 'RAY_ADDRESS' in os.environ else ' and its workers'})",
        file=sys.stderr,
        flush=True,
    )
    server.run()
    if front.failure:
        crew.dismiss(crew.names())
        raise InputError(front.failure)


def _other(found: str, expected: str) -> str:
    have, want = json.loads(found), json.loads(expected)
    names = sorted(name for name in {*have, *want} if have.get(name) != want.get(name))
    first = names[0]
    option = f"--{first.replace('_', '-')}"
    return (
        f"{option}: the workers of this fleet were begun with {have.get(first)}, expected the same, found "
        f"{want.get(first)}; another --fleet has workers of its own"
    )
