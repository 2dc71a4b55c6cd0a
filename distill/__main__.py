"""Training: `python -m distill CONFIG.yaml [key=value]...`, or the same behind `accelerate launch -m`; with a
folder instead of a config, all stages of its recipe.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .command import ended
from .errors import GateError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .config import RunConfig


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m distill", description="Train one stage of a recipe, or all."
    )
    parser.add_argument(
        "config", help="configs/distill/<recipe>/<stage>.yaml, or the folder <recipe> for all its stages"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="dotted overrides, such as optim.lr=1e-3; behind a folder stage.key=value, or key=value for all "
        "stages that have the key",
    )
    parser.add_argument(
        "--resume", default="latest", help="latest (default), none, or a checkpoint directory"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, update each module, print what a run costs"
    )
    parser.add_argument(
        "--meta", action="store_true", help="with --dry-run: count the networks without allocating them"
    )
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes on this machine")
    return parser.parse_intermixed_args(list(arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 bad input, 130 or 143 on a signal."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    return ended(lambda: _run_as(options, given))


def _run_as(options: argparse.Namespace, given: Sequence[str]) -> int:
    if Path(options.config).is_dir():
        return _recipe(options)
    if options.meta:
        return _estimate(options)
    if options.processes > 1 and "LOCAL_RANK" not in os.environ:
        return _launch(options.processes, given)
    return _train(options)


def _train(options: argparse.Namespace) -> int:
    # Imported late, so that usage errors answer at once.
    from .parallel import end_processes, make_accelerator
    from .stages import load_run

    # Depthwise convolutions make channels-last gradients; copying those costs data parallelism little.
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    config = load_run(options.config, options.overrides)
    accelerator = make_accelerator(config)
    try:
        return _run(options, config, accelerator)
    except GateError as error:
        parts = ("python -m distill", options.config, *options.overrides, error.override)
        raise TrainingError(f"{error}. To go on anyway: {' '.join(parts)}") from None
    finally:
        end_processes(accelerator)


def _run(options: argparse.Namespace, config: "RunConfig", accelerator: "Accelerator") -> int:
    from .dry_run import dry_run
    from .memory import check_memory
    from .precision import settled
    from .stages import build_stage, stage_class
    from .trainer import Trainer

    config = settled(config, accelerator.device)
    check_memory(config, stage_class(config.stage), accelerator.num_processes, accelerator.device)
    trainer = Trainer(config, build_stage(config, accelerator.device), accelerator)
    if not options.dry_run:
        return trainer.run(options.resume).exit_code
    cost = dry_run(trainer)
    if accelerator.is_main_process:
        sys.stdout.write("".join(f"{line}\n" for line in cost.lines(config)))
    return 0


def _recipe(options: argparse.Namespace) -> int:
    from .config import ConfigError
    from .recipe import run_recipe

    if options.dry_run or options.meta or options.resume != "latest":
        raise ConfigError("--dry-run, --meta and --resume go with one stage's config, not with a recipe")
    passed = ["--processes", str(options.processes)] if options.processes > 1 else []
    return run_recipe(Path(options.config), options.overrides, passed)


def _estimate(options: argparse.Namespace) -> int:
    from .config import ConfigError
    from .dry_run import estimate
    from .stages import load_run, stage_class

    if not options.dry_run:
        raise ConfigError("--meta goes with --dry-run: networks that are not allocated cannot be trained")
    config = load_run(options.config, options.overrides)
    cost = estimate(config, stage_class(config.stage), options.processes)
    sys.stdout.write("".join(f"{line}\n" for line in cost.lines(config)))
    return 0


def _launch(processes: int, arguments: Sequence[str]) -> int:
    """Start `processes` copies of this command line through torch's launcher (gloo on CPU, NCCL on GPUs)."""
    import torch.distributed.run as launcher
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    command = [
        "--standalone",
        f"--nproc_per_node={processes}",
        "--max_restarts=0",
        "-m",
        "distill",
        *arguments,
    ]
    try:
        launcher.main(command)
    except ChildFailedError as error:
        return max(1, *(failure.exitcode for failure in error.failures.values()))
    except SignalException as error:
        # The launcher has passed the signal on and waited for the processes to save.
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
