"""`python -m streamgen.check`: what `scripts/gpu_check.sh` calls, part by part.

Exit codes: 0 all is well, 1 something is not as it has to be, 2 bad usage.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import StreamgenError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

File = Annotated[Path, typer.Option("--output", "-o", help="The JSON file of results.")]


@app.command()
def parts() -> None:
    """List the parts in their order, each with the seconds that it may take."""
    from .parts import PARTS

    for name, part in PARTS.items():
        print(f"{name} {part.seconds}")


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Parts; all by default.")] = None,
    output: File = Path("gpu_check.json"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    small: Annotated[bool, typer.Option("--small", help="Pieces of a few thousand numbers.")] = False,
) -> None:
    """Run parts; what is done in the file already is not done again."""
    import torch

    from ..machine import auto_device
    from .parts import PARTS, run_part
    from .plan import Plan

    plan = Plan(auto_device() if device == "auto" else torch.device(device), small)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    well = [run_part(name, plan, output, say) for name in names or PARTS]
    raise typer.Exit(0 if all(well) else 1)


@app.command()
def table(output: File = Path("gpu_check.json")) -> None:
    """Print the results as a table."""
    from .report import Report

    print(Report(output).table())


def main() -> None:
    """Run the command; an error is one line on stderr."""
    try:
        app()
    except StreamgenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
