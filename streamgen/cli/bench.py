"""`streamgen bench`."""

from typing import Annotated, Any, Literal

import typer

from ..errors import InputError
from .arguments import COMPUTED, WAN, AsJson, Model, Quiet, with_options
from .progress import say
from .tables import show

_CHUNKS, _QUICK_CHUNKS = 100, 8
_CHUNKS_HELP = "Chunks to time; 100 by default, 8 with --quick; from 300 on also early against late."
_QUICK = "Everything a few times only: for large models, and for a first look."


@with_options(COMPUTED, WAN)
def bench(
    *,
    model: Model = "tiny",
    chunks: Annotated[int | None, typer.Option(min=20, max=10_000_000, help=_CHUNKS_HELP)] = None,
    quick: Annotated[bool, typer.Option("--quick", help=_QUICK)] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads; torch decides by default.")
    ] = None,
    vs: Annotated[
        str | None, typer.Option(help="Also in turns with this runner: ratios with their spread.")
    ] = None,
    beside: Annotated[
        int, typer.Option(min=0, max=64, help="Also the rate beside so many endless loops.")
    ] = 0,
    cold: Annotated[
        int, typer.Option(min=0, max=20, help="Processes started for the first frame with nothing loaded.")
    ] = 1,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Also the share of the device's ceilings, by part of a chunk.")
    ] = False,
    protocol: Annotated[
        Literal["flashdreams"] | None,
        typer.Option(help="Also by this latency protocol: the parts of the sixth chunk of fresh streams."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **more: Any,
) -> None:
    """Measure rate and latencies of a model on this machine."""
    given = dict(locals())
    _measured(given | given.pop("more"))


def _measured(given: dict[str, Any]) -> None:
    """`bench` with the values of its options by name."""
    import torch

    from ..bench import QUICK, BenchOptions, Effort, run_bench
    from ..engine.budget import StepBudget
    from ..engine.choice import check_runner
    from ..engine.parallel.mesh import joined
    from ..pipeline import load_pipeline
    from ..render.job import parse_settings
    from .options import dtype_of, note_runner, wan_options

    model, threads, vs, deadline = given["model"], given["threads"], given["vs"], given["deadline"]
    if threads is not None:
        torch.set_num_threads(threads)
    if vs is not None:
        check_runner(vs)
    if deadline is not None:
        StepBudget.of(deadline)
    values = parse_settings(given["settings"])
    mesh = joined(given["device"])
    alone = (vs, given["beside"], given["roofline"], deadline)
    if mesh is not None and any(alone):
        raise InputError("--vs, --beside, --roofline, --deadline: not over several processes")
    wan, dtype = wan_options(given, lambda text: say(f"note: {text}")), dtype_of(given["dtype"])
    quick = given["quick"]
    options = BenchOptions(
        given["chunks"] or (_QUICK_CHUNKS if quick else _CHUNKS),
        values,
        deadline,
        vs,
        given["beside"],
        0 if mesh else given["cold"],
        given["roofline"],
        given["protocol"] is not None,
        QUICK if quick else Effort(),
        {"wan": wan, "dtype": dtype},
    )
    pipeline = load_pipeline(
        model, given["device"], dtype, wan, given["runner"], given["quantize"], mesh, keep_full=vs is not None
    )
    if threads is None:
        pipeline.settle_threads()
    if given["decode_beside"] or given["decoder_device"] is not None:
        pipeline.decode_beside(given["decoder_device"])
    note_runner(pipeline, lambda note: say(f"note: {note}"))
    leads = mesh is None or mesh.leads
    result = run_bench(pipeline, options, say if leads and not given["quiet"] else lambda text: None)
    if leads:
        show(result, f"streamgen bench: {model}", given["as_json"])
