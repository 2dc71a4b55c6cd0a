"""What the command lines share: options, errors as one line, exit codes, progress, folders."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from streamgen.errors import InputError, StreamgenError


def ended(run: Callable[[], int], interrupted: str = "") -> int:
    """The exit code of `run`: of an error its own, behind one line; 130 for Ctrl-C, which is no loss."""
    try:
        return run()
    except StreamgenError as error:
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        # a full disk, above all: checkpoints tell of it themselves, everything else ends here
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        if interrupted:
            say(interrupted)
        return 130


def add_streaming(parser: argparse.ArgumentParser, streams: str) -> None:
    """Options of what streams: which `streams`, in words, their settings, how many at once, `--json`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=streams)
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="key=value", help="stream settings"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="streams at the same time")
    parser.add_argument("--json", action="store_true", help="print the figures on stdout")


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def out_folder(name: str) -> Path:
    """The folder of the output, made if need be; raises InputError where it cannot be."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {name}: cannot be made ({error.strerror})") from None
    return Path(name)


def named_folder(argument: str) -> tuple[str, Path]:
    """Name and folder of `NAME=DIR`; of `DIR` alone its own name."""
    name, equals, rest = argument.partition("=")
    return (name, Path(rest)) if equals else (Path(argument).name, Path(argument))


def the_one(given: Mapping[str, object], default: str) -> str:
    """Which of the options that exclude each other is given; raises InputError where several are."""
    found = [name for name, value in given.items() if value]
    if len(found) > 1:
        raise InputError(f"{', '.join(given)}: expected one of them, found {' and '.join(found)}")
    return found[0] if found else default


def check_processes(count: int, option: str = "--processes") -> None:
    """Raise InputError unless at least one process may be used."""
    if count < 1:
        raise InputError(f"{option}: expected at least 1, found {count}")
