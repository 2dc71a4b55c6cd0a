"""The demo's options for more than one machine, and for leaving."""

from pathlib import Path
from typing import Annotated, Literal

import typer

_PANEL = "More than one machine"

Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Where sessions live: in this process, or in workers on a Ray cluster (extra ray)."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Default: as GPUs allow, or one for each machine.", rich_help_panel=_PANEL),
]
WorkerGpus = Annotated[
    float | None,
    typer.Option(min=0, help="Of each worker, 0.5: two on one. Default: 1 if any.", rich_help_panel=_PANEL),
]
WorkerCpus = Annotated[float, typer.Option(min=0, help="CPUs of each worker.", rich_help_panel=_PANEL)]
WorkerMemory = Annotated[
    float, typer.Option(min=0, help="GiB that each worker needs on its machine.", rich_help_panel=_PANEL)
]
FleetName = Annotated[
    str, typer.Option(help="Workers of one name serve the same fronts.", rich_help_panel=_PANEL)
]
Shelf = Annotated[
    Path | None,
    typer.Option(help="Folder where streams outlive their process; one that all machines of a cluster see."),
]
DrainSeconds = Annotated[
    float, typer.Option(min=0, help="How long viewers may stay once the server is told to go (SIGTERM).")
]
